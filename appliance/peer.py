# SPDX-License-Identifier: GPL-2.0-or-later
"""The peer, over all links: one session, one ordered stream each way, and whether the peer lives.

A session lasts as long as at least one link is up. Within it no message of the stream is lost or doubled,
whichever link dies; when the last link goes the peer is down and the session is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import struct
import time
from typing import Any, Protocol

from appliance import config as cfg
from appliance.carrier import CarrierWatch
from appliance.events import Events
from appliance.link import Hello, Link
from appliance.rhythm import Rhythm
from appliance.stream import Receiver, Sender
from appliance.watched import watched
from vmlink.wire import Buffer, Header, Message, Type, WireError

log = logging.getLogger("holdfast.peer")

_BEAT = struct.Struct("!QQQQQQ")
"""Received; own clock; the lease that its echo will give; the peer's clock and lease echoed; how long ago they
arrived. All but the first in ns."""
ACKNOWLEDGE_BYTES = 2 << 20
"""Received bytes after which the sender hears of it before the next heartbeat is due."""
LONGEST_LEASE = 30.0
"""Seconds; nobody may speak for longer on one answer."""
STALL_MEMORY = 1.0
"""Seconds for which a stall of this process makes it doubt that the peer fell silent."""


class Handler(Protocol):
    """Who hears of the peer."""

    def peer_up(self) -> None: ...
    def peer_down(self, reason: str, doubtful: bool, speaks_until: float) -> None:
        """No link is left. `doubtful`: this does not tell that the peer is dead. `speaks_until` (monotonic): no
        lease that this host's answers gave the peer lasts longer."""

    def peer_heard(self, until: float) -> None:
        """The peer has had a sign of life of this host, and will not speak in its place before `until`
        (monotonic)."""

    async def message(self, message: Message) -> None:
        """A message, in order. Raises WireError when it makes no sense: the session ends."""


class Peer:
    """See the module. `window` bounds in bytes what is sent and not yet acknowledged; `events` hears of the links."""

    def __init__(self, config: cfg.Config, handler: Handler, window: int, events: Events | None = None) -> None:
        self._config, self._handler, self._window, self._events = config, handler, window, events or Events()
        self.name = config.peer.name
        self._dials = config.host.name < config.peer.name
        self.links = [Link(link, config.timing, self, dials=self._dials) for link in config.link]
        self._session = 0
        self._over = 0
        self._fresh = True
        self._sender, self._receiver = Sender(window), Receiver()
        self._freed = asyncio.Event()
        self._delivering = asyncio.Lock()
        self._active: Link | None = None
        self._clocks: dict[str, tuple[int, int, int]] = {}
        self._rhythm = Rhythm(config.timing)
        self._speaks_until = 0.0
        self._watch: CarrierWatch | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._unacknowledged = 0
        self._ticked = time.monotonic()
        self._stalled = -STALL_MEMORY

    def start(self) -> None:
        """Begin. Raises Unavailable when a link's address cannot be used."""
        self._watch = CarrierWatch(self._look_at_carriers)
        for link in self.links:
            link.start()
        self._ticker = watched(self._tick(), "heartbeats")

    async def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for link in self.links:
            await link.close()
        if self._watch is not None:
            self._watch.close()

    @property
    def up(self) -> bool:
        return self._active is not None

    @property
    def last_heard(self) -> float:
        """When the peer last said anything, on any link; monotonic seconds."""
        return max(link.heard for link in self.links)

    @property
    def active_link(self) -> cfg.Link | None:
        """The link that carries the stream; None when the peer is down."""
        return self._active.config if self._active is not None else None

    # --- sending ---

    def send(self, message: Message) -> None:
        """Send within the stream: arrives once and in order, or the peer goes down. Nothing when it is."""
        if self._active is not None:
            self._active.send(*self._sender.add(message))

    def send_loose(self, message: Message) -> bool:
        """Send outside the stream, preferably on a link with nothing else to do. May be lost."""
        up = [link for link in self.links if link.up]
        if not up:
            return False
        spare = next((link for link in up if link is not self._active), up[0])
        return spare.send_loose(message)

    async def room(self, below: int | None = None) -> bool:
        """Wait until the stream takes more, or until less than `below` bytes are under way. False when the peer is
        down."""
        session = self._session
        while self.up and self._session == session and not (
                self._sender.room if below is None else self._sender.kept_bytes < below):
            self._freed.clear()
            await self._freed.wait()
        return self.up and self._session == session

    async def flush(self, timeout: float) -> None:
        """Wait until the peer has received all that was sent, at most `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.room(1)

    # --- what the links report ---

    def hello(self, link: Link) -> Hello:
        if self._dials and not self._session:
            self._session, self._fresh = secrets.randbits(63) | 1, True
        return Hello(self._config.host.name, self._session, self._fresh)

    def judge(self, link: Link, theirs: Hello) -> str:
        if theirs.host != self._config.peer.name:
            return f"this host's peer is {self._config.peer.name}, not {theirs.host[:64]!r}"
        if self._dials:
            if theirs.refused and not self.up:  # the accepting side's session is over, so ours is
                self._session = 0
            return ""
        if theirs.session <= 0:
            return "no session"
        if theirs.session != self._session:
            if not theirs.fresh:
                return "unknown session"
            if theirs.session == self._over:  # a hello that was under way when the last link of it went
                return "the session is over"
            self._drop_all("the peer began a new session")
            self._session = theirs.session
        return ""

    def joined(self, link: Link, theirs: Hello) -> None:
        if theirs.session != self._session:  # it ended while the hello was under way
            link.drop("the session is over")
        else:
            log.info("link %s is up", link.name)
            self._events.tell("link-up", link=link.name)
            if self._active is None:
                self._active, self._fresh = link, False
                self._handler.peer_up()

    def left(self, link: Link, reason: str) -> None:
        log.warning("link %s is down: %s", link.name, reason)
        self._events.tell("link-down", link=link.name, reason=reason)
        self._clocks.pop(link.name, None)
        link.rtt = None
        if link is not self._active:
            return
        other = next((other for other in self.links if other.up), None)
        if other is not None:
            self._move(other)
            return
        self._active, self._session, self._over = None, 0, self._session
        self._sender, self._receiver = Sender(self._window), Receiver()
        self._freed.set()
        reasons = ", ".join(f"{each.name}: {each.reason}" for each in self.links)
        self._notice_stall()
        stalled = time.monotonic() - self._stalled < STALL_MEMORY
        self._handler.peer_down(f"no link left ({reasons})", stalled or link.ended_here, self._speaks_until)

    def _move(self, link: Link) -> None:
        """The stream goes on over `link`; what the peer may have missed is sent again."""
        self._active = link
        for header, message in self._sender.unreceived():
            link.send(header, message)

    async def arrived(self, link: Link, header: Header, payload: Buffer) -> None:
        if header.type is Type.BEAT:
            self._beat_arrived(link, payload)
            return
        if header.type is Type.HELLO:
            raise WireError("a second hello")
        message = Message(header.type, header.vm, header.term, header.epoch, (payload,))
        session = self._session
        async with self._delivering:
            if not session or session != self._session:
                return
            if header.seq and not self._receiver.take(header.seq):
                return
            try:
                await self._handler.message(message)
            except WireError as error:
                self._drop_all(str(error))
                raise
        self._unacknowledged += header.length
        if self._unacknowledged >= ACKNOWLEDGE_BYTES and link.up:
            self._beat(link)

    def _drop_all(self, reason: str) -> None:
        for link in self.links:
            link.drop(reason, here=True)

    def _look_at_carriers(self) -> None:
        for link in self.links:
            link.carrier = self._watch is not None and self._watch.carrier(link.config.interface)
            if not link.carrier:
                link.drop("carrier lost")

    # --- signs of life ---

    async def _tick(self) -> None:
        timing = self._config.timing
        while True:
            await asyncio.sleep(timing.hello)
            now, stalled = time.monotonic(), self._notice_stall()
            self._look_at_carriers()
            for link in self.links:
                if link.up:
                    self._beat(link)
            if not stalled:  # else what the peer sent meanwhile must be read before it is judged
                timeout = self._rhythm.timeout(now)
                for link in self.links:
                    if link.silence(now) > timeout:
                        link.drop(f"silent for {link.silence(now) * 1e3:.0f} ms")

    def _notice_stall(self) -> bool:
        """Did this process stand still until now for so long that the peer may have given it up?"""
        now = time.monotonic()
        stalled = now - self._ticked > self._config.timing.timeout / 2
        self._ticked = now
        if stalled:
            self._stalled = now
        return stalled

    def _beat(self, link: Link) -> None:
        self._unacknowledged = 0
        now = time.monotonic_ns()
        lease = int(self._rhythm.lease(now / 1e9) * 1e9)
        clock, given, arrived = self._clocks.get(link.name, (0, 0, now))
        beat = _BEAT.pack(self._receiver.received, now, lease, clock, given, now - arrived)
        link.send_loose(Message(Type.BEAT, payload=(beat,)))

    def _beat_arrived(self, link: Link, payload: Buffer) -> None:
        """Answering it will let the peer speak until its clock + lease: this host may not before, counted from now.
        """
        if len(payload) != _BEAT.size:
            raise WireError(f"a heartbeat of {len(payload)} bytes")
        received, clock, lease, echo, given, held = _BEAT.unpack(payload)
        now = time.monotonic_ns()
        if echo > now:
            raise WireError("a heartbeat that echoes one not yet sent")
        if lease > LONGEST_LEASE * 1e9:
            raise WireError(f"a lease of {lease / 1e9:.0f} s")
        if link.name in self._clocks:
            self._rhythm.beat((now - self._clocks[link.name][2]) / 1e9, now / 1e9)
        self._clocks[link.name] = (clock, lease, now)
        self._speaks_until = max(self._speaks_until, (now + lease) / 1e9)
        if echo:
            link.rtt = max(0, now - echo - held) / 1e9
            self._rhythm.echo((now - echo) / 1e9, now / 1e9)
            self._handler.peer_heard((echo + min(given, int(self._config.timing.lease_max * 1e9))) / 1e9)
            if echo / 1e9 > self._stalled:  # heard since: it had not given this host up
                self._stalled = -STALL_MEMORY
        if self._sender.received(received):
            self._freed.set()

    def status(self) -> dict[str, Any]:
        """For the status reply."""
        now = time.monotonic()
        return {
            "name": self.name,
            "state": "up" if self.up else "down",
            "lease_ms": round(self._rhythm.lease(now) * 1e3),
            "timeout_ms": round(self._rhythm.timeout(now) * 1e3),
            "links": [{"name": link.name, "state": "up" if link.up else "down",
                       "active": link is self._active, "carrier": link.carrier, "reason": link.reason,
                       "rtt_us": None if link.rtt is None else round(link.rtt * 1e6),
                       "sent_bytes": link.sent_bytes, "received_bytes": link.received_bytes} for link in self.links],
        }
