# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens on this host, told to whoever listens: one numbered stream, bounded for each subscriber.

`docs/events.md` has the names and their fields. An event is a JSON object with `seq` (from 1, without gaps, since
the service started), `at` (UNIX seconds), `event`, and `vm` where it is about one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

log = logging.getLogger("holdfast.events")
Event = dict[str, Any]
Dump = Callable[[], Iterable[Event]]
WAITING = 1000
"""Events that may wait for one subscriber; what comes on top of them is lost to it, and counted."""
STATE, END_OF_STATE, LOST = "state", "end-of-state", "lost"


class Subscription:
    """What one subscriber has not read yet, oldest first. Telling never waits for it."""

    def __init__(self, limit: int, leave: Callable[[Subscription], None]) -> None:
        self._limit, self._leave = limit, leave
        self._waiting: deque[Event] = deque()
        self._lost = 0
        self._wake = asyncio.Event()

    def put(self, event: Event) -> None:
        if self._lost or len(self._waiting) >= self._limit:
            self._lost += 1  # and all that follow until it has read: what it gets has no hole but one that is told
        else:
            self._waiting.append(event)
        self._wake.set()

    async def next(self) -> Event:
        """The next event; `{"event": "lost", "count": n}` where some did not fit."""
        while not self._waiting and not self._lost:
            self._wake.clear()
            await self._wake.wait()
        if self._waiting:
            return self._waiting.popleft()
        lost, self._lost = self._lost, 0
        return {"at": time.time(), "event": LOST, "count": lost}

    def close(self) -> None:
        self._leave(self)


class Events:
    """See the module."""

    def __init__(self) -> None:
        self._seq = 0
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[Event, float], None]] = []
        self.lost = 0
        """Events that subscribers lost since the service started."""

    def listen(self, hear: Callable[[Event, float], None]) -> None:
        """Call `hear` with each event and its moment (monotonic seconds), at once: it must not wait."""
        self._listeners.append(hear)

    def tell(self, event: str, /, vm: str = "", **fields: Any) -> Event:
        """Something happened now."""
        self._seq += 1
        now, about = time.monotonic(), {"vm": vm} if vm else {}
        told: Event = {"seq": self._seq, "at": time.time(), "event": event, **about, **fields}
        for hear in self._listeners:
            try:
                hear(told, now)
            except Exception:  # a defect, but of one who looks on: whoever tells must not suffer from it
                log.exception("a listener failed at the event %s", event)
        for subscription in self._subscriptions:
            subscription.put(told)
        return told

    def subscribe(self, limit: int = WAITING) -> Subscription:
        """All that happens from now on."""
        subscription = Subscription(limit, self._subscriptions.discard)
        self._subscriptions.add(subscription)
        return subscription

    async def stream(self, dump: Dump, *, vm: str = "", live: bool = True) -> AsyncGenerator[Event, None]:
        """What is so now, as `dump` tells it, a marker, then what happens; without `live` it ends at the marker.

        With `vm` nothing that is about another VM. A reader that fell behind hears how many events it lost, and then
        what is so now once more.
        """
        subscription = self.subscribe()
        try:
            for one in self._state(dump, vm):
                yield one
            while live:
                event = await subscription.next()
                if vm and event.get("vm", vm) != vm:
                    continue
                yield event
                if event["event"] == LOST:
                    self.lost += int(event["count"])
                    for one in self._state(dump, vm):
                        yield one
        finally:
            subscription.close()

    def _state(self, dump: Dump, vm: str) -> Iterable[Event]:
        at = time.time()
        for one in list(dump()):
            if not vm or one.get("vm", vm) == vm:
                yield {"at": at, "event": STATE, **one}
        yield {"at": at, "event": END_OF_STATE, "seq": self._seq}
