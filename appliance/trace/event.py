# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace shows: one event for each frame at each point of its way, and the notes between them."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from appliance.trace.notes import Note
from ebpf import trace


class Point(StrEnum):
    """Where a frame was, and what became of it there."""

    HELD = "held"
    OVERFLOW = "overflow"
    RELEASED = "released"
    REPLAYED = "replayed"
    ANNOUNCED = "announced"
    DROPPED = "dropped"
    FENCED = "fenced"
    DISCARDED = "discarded"
    RECEIVED = "received"
    REFUSED = "refused"
    INJECTED = "injected"
    LOST = "lost"


MEANING = {
    Point.HELD: "sent by the VM; waits in the gate",
    Point.OVERFLOW: "dropped by the gate: no room left under a limit, or no memory",
    Point.RELEASED: "passed the guard into the network",
    Point.REPLAYED: "sent again after a takeover, of an epoch that was committed",
    Point.ANNOUNCED: "sent by this host to tell the network where the VM is",
    Point.DROPPED: "dropped by the guard: early, expired (no lease), or unstamped",
    Point.FENCED: "dropped by the guard: no term is open on this host",
    Point.DISCARDED: "held, and thrown away: its epoch can never be committed",
    Point.RECEIVED: "let in to the VM",
    Point.REFUSED: "for the VM, dropped: the front is shut",
    Point.INJECTED: "put into the VM by this host: replayed, or forwarded by the other host",
    Point.LOST: "dropped by the kernel itself, and why and where",
}
OUT = frozenset((Point.RELEASED, Point.REPLAYED, Point.ANNOUNCED))
"""What has reached the network."""
ONCE = frozenset(Point) - {Point.HELD}
"""Each frame once, where its way ends."""
PASS, DROP, REDIRECT = 0, 2, 7
"""TC actions."""
VERDICT = {Point.HELD: REDIRECT, Point.RECEIVED: REDIRECT, Point.RELEASED: PASS, Point.REPLAYED: PASS,
           Point.ANNOUNCED: PASS, Point.INJECTED: PASS}
"""The TC action at each point; DROP at all others."""
KERNEL = {
    trace.Point.HELD: (Point.HELD, ""),
    trace.Point.OVERFLOW: (Point.OVERFLOW, "limit"),
    trace.Point.FAILED: (Point.OVERFLOW, "memory"),
    trace.Point.RELEASED: (Point.RELEASED, ""),
    trace.Point.EARLY: (Point.DROPPED, "early"),
    trace.Point.FENCED: (Point.FENCED, "no-term"),
    trace.Point.EXPIRED: (Point.DROPPED, "expired"),
    trace.Point.UNSTAMPED: (Point.DROPPED, "unstamped"),
    trace.Point.RECEIVED: (Point.RECEIVED, ""),
    trace.Point.SHUT: (Point.REFUSED, "shut"),
}
"""Point and cause of what the packet programs tell."""


class Waits(msgspec.Struct, frozen=True):
    """What a frame was held for, in nanoseconds; together they are the time it was held.

    epoch: for its end. transfer: until all of it was on the link. ack: for the backup's word. release: for its turn.
    """

    epoch_ns: int
    transfer_ns: int
    ack_ns: int
    release_ns: int

    def longest(self) -> str:
        return max(("epoch", "transfer", "ack", "release"), key=lambda name: getattr(self, name + "_ns"))


class Frame(msgspec.Struct, kw_only=True, tag="frame", tag_field="kind"):
    """A frame at one point of its way. Times are UNIX nanoseconds.

    `epoch` and `seq` (counted from 1 within the epoch) name the frame; epoch 0 is the time in which the VM runs alone,
    `seq` is the gate's number there. `number` is the gate's, 0 where the frame has none; `term` is that of the epoch,
    `under` the one that the guard was open for. `cause` of a release: `ack`, `alone`, or `none`, which must not be.
    `held_frames` and `held_bytes` were in the gate before it, `committed` is the number up to which the guard let pass.
    `lost_before`: events lost until now. `snap`: the beginning of `size` bytes.
    """

    at_ns: int
    host: str
    vm: str
    point: Point
    cause: str = ""
    term: int = 0
    epoch: int = 0
    seq: int = 0
    number: int = 0
    size: int = msgspec.field(default=0, name="bytes")
    segments: int = 0
    hold_ns: int | None = None
    waits: Waits | None = None
    held_frames: int | None = None
    held_bytes: int | None = None
    under: int | None = None
    committed: int | None = None
    lost_before: int = 0
    snap: bytes = b""
    summary: str = ""

    @property
    def packet_id(self) -> int:
        """The same at every point: epoch << 32 | seq."""
        return (self.epoch & 0xFFFFFFFF) << 32 | self.seq & 0xFFFFFFFF

    @property
    def name(self) -> str:
        """EPOCH.SEQ; a dash for what is no frame of an epoch."""
        return f"{self.epoch}.{self.seq}" if self.number else "-"

    @property
    def verdict(self) -> int:
        return VERDICT.get(self.point, DROP)


Event = Frame | Note
