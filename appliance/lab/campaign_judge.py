# SPDX-License-Identifier: GPL-2.0-or-later
"""What the frames at the switch prove: whether two hosts spoke at once, and whether the VM said what it then forgot.

Pure: nothing here asks Holdfast. The evidence is what a capture shows, no counter of a service.

Two speakers: hosts speak in turns. A host can only speak again after another spoke if it became that one's backup
first, which takes its time; a turn that is over sooner was no turn but two voices.

Early frames: what left before its epoch was committed is forgotten when the other host takes over. The VM's own
words give it away: its clock, which every TCP segment carries (RFC 7323), runs again through moments in which it had
spoken already; or other bytes stand in the place of those that a client has. A copy of a segment that was sent
before is neither: after a takeover the small frames of the last epochs are sent again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from appliance.lab.wire import IP, TCP, Frame

LEAST_TURN = 0.2  # seconds; a host that lost its turn needs more than that to become a backup with a whole replica
_RECENT = 512  # segments remembered of a connection
_LISTED = 5  # findings told one by one
_ETHERNET, _TCP_LEAST = 14, 20
_END, _PAD, _TIMESTAMPS = 0, 1, 8


@dataclass(frozen=True)
class Turn:
    """A host spoke, and no other meanwhile; unix seconds of the first and the last frame."""

    host: str
    first: float
    last: float
    frames: int


def turns(frames: Iterable[Frame]) -> list[Turn]:
    """Who spoke when; `frames` in the order of time."""
    found = []
    for host, group in itertools.groupby(frames, attrgetter("port")):
        spoken = list(group)
        found.append(Turn(host, spoken[0].at, spoken[-1].at, len(spoken)))
    return found


def voices(turns: Sequence[Turn], takeovers: int | None) -> list[str]:
    """Each time two hosts spoke at once, in words.

    takeovers: how often the VM can have changed hosts at most, None if that is not known.
    """
    found = []
    for before, between, after in zip(turns, turns[1:], turns[2:], strict=False):
        if before.host == after.host and after.first - between.first < LEAST_TURN:
            found.append(f"{between.host} spoke {between.frames} frames from {between.first:.6f} to {between.last:.6f} "
                         f"in between those of {before.host} at {before.last:.6f} and {after.first:.6f}")  # fmt: skip
    if not found and takeovers is not None and len(turns) - 1 > takeovers:
        found.append(f"{', then '.join(turn.host for turn in turns)} spoke in turn, but the term rose by {takeovers}")
    return found


@dataclass(frozen=True)
class Segment:
    """One TCP segment of the VM. `payload`: as much of it as was captured; `clock`: the VM's, None if not given."""

    to: tuple[bytes, int, int]
    sequence: int
    acknowledged: int
    length: int
    clock: int | None
    payload: bytes


def segment(head: bytes) -> Segment | None:
    """The TCP segment in an IPv4 frame that begins with `head`; None for anything else, and for what is mangled."""
    if int.from_bytes(head[12:14], "big") != IP or len(head) < _ETHERNET + 20 or head[23] != TCP:
        return None
    tcp = _ETHERNET + (head[_ETHERNET] & 15) * 4
    if len(head) < tcp + _TCP_LEAST:
        return None
    data = tcp + (head[tcp + 12] >> 4) * 4
    length = _ETHERNET + int.from_bytes(head[16:18], "big") - data
    return Segment(
        to=(head[30:34], int.from_bytes(head[tcp : tcp + 2], "big"), int.from_bytes(head[tcp + 2 : tcp + 4], "big")),
        sequence=int.from_bytes(head[tcp + 4 : tcp + 8], "big"),
        acknowledged=int.from_bytes(head[tcp + 8 : tcp + 12], "big"),
        length=length,
        clock=_clock(head[tcp + _TCP_LEAST : data]),
        payload=head[data : data + max(0, length)],
    )


def _clock(options: bytes) -> int | None:
    at = 0
    while at < len(options) and options[at] != _END:
        if options[at] == _PAD:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if options[at] == _TIMESTAMPS and size == 10 and at + 6 <= len(options):
            return int.from_bytes(options[at + 2 : at + 6], "big")
        at += max(size, 2)
    return None


@dataclass
class _Connection:
    """What the VM said on one connection: the latest clock by host, and the last segments."""

    latest: dict[str, int] = field(default_factory=dict)
    recent: deque[tuple[int, int, int | None, int]] = field(default_factory=lambda: deque(maxlen=_RECENT))
    said: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Speech:
    """All that the VM said since it was started; a VM that was started afresh needs another."""

    early: int = 0
    findings: list[str] = field(default_factory=list)
    _connections: dict[tuple[bytes, int, int], _Connection] = field(default_factory=dict)

    def hear(self, frames: Iterable[Frame]) -> None:
        """Judge `frames`, in the order of time and later than all before."""
        for frame in frames:
            spoken = segment(frame.head)
            if spoken is not None:
                self._judge(frame, spoken)

    def _judge(self, frame: Frame, spoken: Segment) -> None:
        of = self._connections.setdefault(spoken.to, _Connection())
        form = (spoken.sequence, spoken.acknowledged, spoken.clock, spoken.length)
        if spoken.payload:
            self._compare(frame, spoken, of)
        if spoken.clock is None:
            return
        for host, latest in of.latest.items():
            late = _ahead(latest, spoken.clock)
            if host != frame.port and late > 0 and form not in of.recent:
                self._found(frame, f"the VM's clock was {late} ms further when {host} spoke for it")
        own = of.latest.get(frame.port)
        if own is None or _ahead(spoken.clock, own) > 0:
            of.latest[frame.port] = spoken.clock
        of.recent.append(form)

    def _compare(self, frame: Frame, spoken: Segment, of: _Connection) -> None:
        before = of.said.get(spoken.sequence, b"")
        common = min(len(before), len(spoken.payload))
        if before[:common] != spoken.payload[:common]:
            self._found(frame, f"{spoken.payload!r} stands where {before!r} stood")
        of.said.pop(spoken.sequence, None)
        of.said[spoken.sequence] = max(before, spoken.payload, key=len)
        if len(of.said) > _RECENT:
            del of.said[next(iter(of.said))]

    def _found(self, frame: Frame, what: str) -> None:
        self.early += 1
        if len(self.findings) < _LISTED:
            self.findings.append(f"{frame.port} at {frame.at:.6f}: {what}")


def _ahead(one: int, other: int) -> int:
    """How far the 32-bit counter `one` is ahead of `other`; negative if behind."""
    return ((one - other + (1 << 31)) & 0xFFFFFFFF) - (1 << 31)
