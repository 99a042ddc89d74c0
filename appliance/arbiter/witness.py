# SPDX-License-Identifier: GPL-2.0-or-later
"""The witness: a small service on a third machine that keeps the records of many pairs.

It answers over UDP: a question is one datagram and has to be sealed with the key of its pair, or there is no answer.
Nothing is kept of whoever asks, and what waits to be written is bounded, so nobody can fill it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import time
from pathlib import Path
from typing import cast

from appliance.arbiter import key
from appliance.arbiter.datagram import Question, Reply, address, peek, seal, unseal
from appliance.arbiter.shelf import Shelf
from appliance.errors import HoldfastError, NoPermission, Unavailable
from appliance.logs.lines import Form
from appliance.logs.logs import start
from appliance.notify import Notifier
from appliance.watched import is_defect, watched

WAITING = 256
"""Records that may wait to be written; a question beyond is not answered, and will be asked again."""
TELL = 10.0
"""Seconds between two lines in the log about datagrams that get no answer: whoever sends them may send many."""
log = logging.getLogger("holdfast.witness")

Asked = tuple[Question, bytes, tuple[str, int]]


class Witness(asyncio.DatagramProtocol):
    """See the module. `keys` holds PAIR.key for each pair that it serves."""

    def __init__(self, shelf: Shelf, keys: Path) -> None:
        self._shelf, self._keys = shelf, keys
        self._writes: asyncio.Queue[Asked] = asyncio.Queue(WAITING)
        self._transport: asyncio.DatagramTransport | None = None
        self._refused, self._tell_at = 0, -math.inf

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            pair = peek(data).pair
            secret = key.load(self._keys / f"{pair}.key")
            question = unseal(data, Question, secret)
        except HoldfastError as error:
            self._refuse(addr, error.message)
            return
        if question.put is None:
            self._answer((question, secret, addr))
            return
        try:
            self._writes.put_nowait((question, secret, addr))
        except asyncio.QueueFull:
            self._refuse(addr, "too much waits to be written")

    def _refuse(self, sender: tuple[str, int], why: str) -> None:
        self._refused += 1
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + TELL
            log.warning("%s gets no answer: %.200r; %d datagrams got none so far", sender[0], why, self._refused)

    async def write(self) -> None:
        """Put down what is to be put, one after the other."""
        while True:
            asked = await self._writes.get()
            question = asked[0]
            assert question.put is not None
            put = question.put
            trouble = await asyncio.get_running_loop().run_in_executor(
                None, self._shelf.put, question.pair, question.vm, put.version, put.record)
            if not trouble:
                log.info("%s: %s: term %d: %s", question.pair, question.vm, put.record.term,
                         put.record.host or "nobody")
            self._answer(asked, done=not trouble, trouble=trouble)

    def _answer(self, asked: Asked, *, done: bool = False, trouble: str = "") -> None:
        question, secret, to = asked
        version, record = self._shelf.get(question.pair, question.vm)
        if self._transport is not None:
            self._transport.sendto(seal(Reply(question.nonce, version, record, done, trouble[:300]), secret), to)


async def _bind(listen: str, witness: Witness) -> asyncio.DatagramTransport:
    host, port = address(listen)
    try:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: witness, local_addr=(host, port), family=socket.AF_INET6 if ":" in host else 0)
    except PermissionError as error:
        raise NoPermission(f"{listen}: {error.strerror}", "choose a port above 1023") from None
    except OSError as error:
        hint = "give an address of this machine and a free port"
        raise Unavailable(f"{listen}: {error.strerror or error}", hint) from None
    return transport


async def _run(listen: str, shelf: Shelf, keys: Path, ready_fd: int | None, notifier: Notifier) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    witness = Witness(shelf, keys)
    defects: list[str] = []

    def unhandled(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        log.critical("%s", context["message"], exc_info=context.get("exception"))  # type: ignore[arg-type]
        if is_defect(context):
            defects.append(str(context["message"]))
            stop.set()

    loop.set_exception_handler(unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    transport = await _bind(listen, witness)
    writer = watched(witness.write(), "witness: writing")
    log.info("the witness serves %s with %d records", listen, len(shelf))
    if ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
    notifier.ready()
    notifier.status(f"serves {listen}, {len(shelf)} records")
    watchdog = watched(notifier.watch(lambda: ""), "watchdog")
    await stop.wait()
    notifier.stopping()
    watchdog.cancel()
    transport.close()
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    if defects:
        raise HoldfastError(defects[0], "this is a defect: please report it")


def main(listen: str, state: Path, keys: Path, ready_fd: int | None = None, form: Form = Form.AUTO) -> None:
    """Serve in the foreground until SIGTERM or SIGINT; logs go to standard error.

    Raises HoldfastError when it cannot start.
    """
    with contextlib.closing(start("info", form)):
        _serve(listen, state, keys, ready_fd)


def _serve(listen: str, state: Path, keys: Path, ready_fd: int | None) -> None:
    if not keys.is_dir():
        raise Unavailable(f"there is no directory {keys}", f"make it, with PAIR.key in it; {key.HOW}")
    for path in sorted(keys.glob("*.key")):
        try:
            key.load(path)
        except HoldfastError as error:  # the other pairs are served all the same
            log.error("%s; %s: this pair gets no answers", error.message, error.hint)
    with contextlib.closing(Shelf(state)) as shelf:
        asyncio.run(_run(listen, shelf, keys, ready_fd, Notifier()))
