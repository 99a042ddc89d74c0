# SPDX-License-Identifier: GPL-2.0-or-later
"""A host under test: a real Peer with real links, in a thread of its own that lives in its namespace."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import xxhash

from appliance import config as cfg
from appliance.link import Link
from appliance.peer import Peer
from tests.links.cables import Cables, until
from vmlink.wire import Message, Type

T = TypeVar("T")
WINDOW = 8 << 20
NOISE = memoryview(random.Random(7).randbytes(6 << 20))
Noted = tuple[Type, int, int, int, int, int]  # type, vm, term, epoch, size, digest


def noted(message: Message) -> Noted:
    """What tells one message from any other."""
    hashed = xxhash.xxh3_64()
    for part in message.payload:
        hashed.update(part)
    size = sum(len(part) for part in message.payload)
    return message.type, message.vm, message.term, message.epoch, size, hashed.intdigest()


class _Peer(Peer):
    """Notes when a link went, and why."""

    lost: list[tuple[float, str, str]]

    def left(self, link: Link, reason: str) -> None:
        self.lost.append((time.monotonic(), link.name, reason))
        super().left(link, reason)


class Host:
    """Runs until `stop`. What the handler hears is in `events` and `received`."""

    def __init__(self, cables: Cables, place: str, timing: cfg.Timing, *, window: int = WINDOW, **config: Any) -> None:
        self._cables, self.place, self._window = cables, place, window
        self.config = cables.config(place, timing=timing, **config)
        self.events: list[tuple[str, str, bool]] = []
        self.received: list[Noted] = []
        self.sent: list[Noted] = []
        self.heard: list[tuple[float, float]] = []
        self.bounds: list[float] = []
        self.on_message: Callable[[Message], Awaitable[None]] | None = None
        self.lost: list[tuple[float, str, str]] = []
        self.defects: list[str] = []
        self.peer: Peer
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"host {place}", daemon=True)

    # --- the handler ---

    def peer_up(self) -> None:
        self.events.append(("up", "", False))

    def peer_down(self, reason: str, stalled: bool, speaks_until: float) -> None:
        self.events.append(("down", reason, stalled))
        self.bounds.append(speaks_until)

    def peer_heard(self, until: float) -> None:
        self.heard.append((until, time.monotonic()))

    async def message(self, message: Message) -> None:
        if self.on_message is not None:
            await self.on_message(message)
        self.received.append(noted(message))

    # --- from the test's thread ---

    def start(self) -> Host:
        self._thread.start()
        assert self._ready.wait(15)
        if self._failed is not None:
            raise self._failed
        return self

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(15)
            assert not self._thread.is_alive(), f"host {self.place} does not end"

    def call(self, work: Callable[[], Awaitable[T]], timeout: float = 30.0) -> T:
        """Run a coroutine in the host's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(self._await(work), self._loop).result(timeout)

    async def _await(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    def do(self, work: Callable[[], T]) -> T:
        """Run a function in the host's loop."""

        async def later() -> T:
            return work()

        return self.call(later)

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.do(lambda message=message: self.peer.send(message))  # type: ignore[misc]
            self.sent.append(noted(message))

    def stream(self, stop: threading.Event, seed: int) -> Any:
        """Send messages of all sizes until `stop` is set; the result is a future that ends when all has arrived."""
        return asyncio.run_coroutine_threadsafe(self._stream(stop, random.Random(seed)), self._loop)

    async def _stream(self, stop: threading.Event, rng: random.Random) -> None:
        while not stop.is_set():
            size = rng.choice((0, 1, 100, 4096, 64 << 10, 300_000, 1 << 20))
            first, cut = rng.randrange(len(NOISE) - size), rng.randint(0, size)
            parts = (NOISE[first:first + cut], NOISE[first + cut:first + size])
            message = Message(Type.PAGES, rng.getrandbits(64), 1, len(self.sent), parts)
            assert await self.peer.room(), "the session ended"
            self.peer.send(message)
            self.sent.append(noted(message))
            await asyncio.sleep(0)
        await self.peer.flush(20)

    def link(self, name: str) -> dict[str, Any]:
        return next(link for link in self.do(self.peer.status)["links"] if link["name"] == name)

    def links_up(self) -> list[str]:
        return [link["name"] for link in self.do(self.peer.status)["links"] if link["state"] == "up"]

    def session(self) -> int:
        return self.peer._session

    @property
    def downs(self) -> list[str]:
        return [reason for event, reason, _ in self.events if event == "down"]

    # --- in the host's thread ---

    def _run(self) -> None:
        try:
            self._cables.enter(self.place)
            asyncio.run(self._main())
        except BaseException as error:
            self._failed = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._loop.set_exception_handler(lambda _, context: self.defects.append(str(context)))
        peer = _Peer(self.config, self, self._window)
        peer.lost, self.peer = self.lost, peer
        try:
            self.peer.start()
            self._ready.set()
            await self._stop.wait()
        finally:
            await self.peer.close()


def both_up(*hosts: Host) -> None:
    """Wait until both links are up on every host."""
    until("both links are up", lambda: all(len(host.links_up()) == 2 for host in hosts))
