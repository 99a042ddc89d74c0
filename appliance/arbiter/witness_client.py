# SPDX-License-Identifier: GPL-2.0-or-later
"""A pair's records at its witness, over UDP."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

from appliance.arbiter import key
from appliance.arbiter.datagram import Put, Question, Reply, seal, unseal
from appliance.arbiter.grants import Record
from appliance.errors import BadData, Unavailable

AGAIN = (0.03, 0.06, 0.12, 0.25)
"""Seconds after which a question without an answer is sent again; then each time as long as the last."""


class _Exchange(asyncio.DatagramProtocol):
    """Takes the answer to one question."""

    def __init__(self, nonce: str, secret: bytes) -> None:
        self._nonce, self._secret = nonce, secret
        self.reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.trouble = "no answer"

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            reply = unseal(data, Reply, self._secret)
        except BadData as error:
            self.trouble = error.message
            return
        if reply.nonce == self._nonce and not self.reply.done():
            self.reply.set_result(reply)

    def error_received(self, exc: Exception) -> None:
        # Nobody listens there now; the next try may find somebody.
        self.trouble = (exc.strerror if isinstance(exc, OSError) else None) or str(exc)


class WitnessRegister:
    """See the module. Raises Unavailable or NoPermission when the key cannot be used."""

    def __init__(self, address: tuple[str, int], pair: str, key_file: Path, timeout: float) -> None:
        self._address, self._pair, self._timeout = address, pair, timeout
        self._secret = key.load(key_file)

    async def read(self, vm: str) -> tuple[int, Record]:
        reply = await self._exchange(Question(secrets.token_hex(16), self._pair, vm))
        return reply.version, reply.record

    async def swap(self, vm: str, version: int, record: Record) -> bool:
        reply = await self._exchange(Question(secrets.token_hex(16), self._pair, vm, Put(version, record)))
        if reply.trouble and reply.version == version:
            raise Unavailable(f"the witness cannot keep a grant: {reply.trouble}", "see its log")
        return reply.done

    async def _exchange(self, question: Question) -> Reply:
        """Ask until there is an answer."""
        exchange = _Exchange(question.nonce, self._secret)
        datagram = seal(question, self._secret)
        transport: asyncio.DatagramTransport | None = None
        try:
            async with asyncio.timeout(self._timeout):
                for wait in (*AGAIN, *[AGAIN[-1]] * 1000):
                    if transport is None:
                        transport = await self._open(exchange)
                    if transport is not None:
                        transport.sendto(datagram)
                    await asyncio.wait([exchange.reply], timeout=wait)
                    if exchange.reply.done():
                        return exchange.reply.result()
        except TimeoutError:
            pass
        finally:
            if transport is not None:
                transport.close()
        host, port = self._address
        raise Unavailable(f"the witness {host}:{port} gives no answer within {self._timeout:g} s ({exchange.trouble})",
                          f"does it run, is it reachable, does it have the key of pair {self._pair}?")

    async def _open(self, exchange: _Exchange) -> asyncio.DatagramTransport | None:
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: exchange, remote_addr=self._address)
        except OSError as error:
            exchange.trouble = error.strerror or str(error)
            return None
        return transport

    async def close(self) -> None:
        """There is nothing to let go of."""
