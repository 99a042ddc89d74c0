# SPDX-License-Identifier: GPL-2.0-or-later
"""What one host asks of the other on behalf of its operator, and the answer: verbs over the stream of the links."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from appliance.errors import HoldfastError, Unavailable, from_code
from appliance.peer import Peer
from appliance.spoken import understood
from appliance.watched import watched
from vmlink.wire import Message, Type, WireError

AT_ONCE = 8
"""Orders of the peer under way; one more is refused."""
LONGEST = 256 << 10
"""Bytes of an order or an answer."""
log = logging.getLogger("holdfast.orders")
Verb = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class _Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    verb: str
    args: dict[str, Any]


class _Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int
    ok: dict[str, Any] | None = None
    error: tuple[str, str, str] | None = None
    """Code, message, hint."""


class Orders:
    """Asks the peer, and does what the peer asks, one of `verbs`."""

    def __init__(self, peer: Peer, verbs: dict[str, Verb]) -> None:
        self._peer, self._verbs = peer, verbs
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._doing: set[asyncio.Task[None]] = set()

    async def ask(self, verb: str, timeout: float, **args: Any) -> dict[str, Any]:
        """What the peer's service answers.

        Raises Unavailable (not reachable, or no answer within `timeout` seconds) or the error of the peer.
        """
        if not self._peer.up:
            raise Unavailable(f"{self._peer.name} is not reachable over any link", "holdfast status names the links")
        number = next(self._numbers)
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = answer
        try:
            self._peer.send(Message(Type.ORDER, payload=(msgspec.json.encode(_Order(number, verb, args)),)))
            async with asyncio.timeout(timeout):
                return await answer
        except TimeoutError:
            raise Unavailable(f"{self._peer.name} did not answer within {timeout:g} s", "see its log") from None
        finally:
            del self._asked[number]

    def peer_down(self) -> None:
        """Nothing that was asked will be answered any more."""
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(Unavailable(f"the links to {self._peer.name} went down before it answered",
                                                 "look at both hosts: what was asked may be done or not"))

    def message(self, message: Message) -> None:
        """An order of the peer, or its answer to ours. Raises WireError when it makes no sense."""
        payload = b"".join(bytes(part) for part in message.payload)
        if message.type is Type.ORDER:
            if len(self._doing) >= AT_ONCE:
                raise WireError(f"more than {AT_ONCE} orders at once")
            task = watched(self._do(understood(payload, _Order, "an order", LONGEST)), "an order of the peer")
            self._doing.add(task)
            task.add_done_callback(self._doing.discard)
            return
        answer = understood(payload, _Answer, "an answer", LONGEST)
        waiting = self._asked.get(answer.number)
        if waiting is None or waiting.done():
            return  # too late
        if answer.error is not None:
            waiting.set_exception(from_code(*answer.error))
        else:
            waiting.set_result(answer.ok or {})

    async def _do(self, order: _Order) -> None:
        quiet = order.verb == "health"  # asked again and again
        log.log(logging.DEBUG if quiet else logging.INFO, "%s orders: %s %s", self._peer.name, order.verb[:40],
                order.args)
        try:
            verb = self._verbs.get(order.verb)
            if verb is None:
                raise Unavailable(f"this host knows no order {order.verb[:40]!r}", "use the same version on both")
            answer = _Answer(order.number, ok=await verb(order.args))
        except HoldfastError as error:
            answer = _Answer(order.number, error=(error.code, error.message, error.hint))
        self._peer.send(Message(Type.ANSWER, payload=(msgspec.json.encode(answer),)))

    async def close(self) -> None:
        for task in list(self._doing):
            task.cancel()
        await asyncio.gather(*self._doing, return_exceptions=True)
