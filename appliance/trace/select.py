# SPDX-License-Identifier: GPL-2.0-or-later
"""Which events of a trace are wanted, and what the packet programs must tell for that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from appliance.trace.event import KERNEL, Event, Frame, Point
from appliance.trace.expression import Expression

_HELD_TELLS = frozenset(Point) - {Point.RECEIVED, Point.REFUSED, Point.INJECTED, Point.OVERFLOW, Point.LOST}
"""Points at which it is told how long a frame was held, or which depend on what was."""
_SAME = {Point.REPLAYED: Point.RELEASED, Point.ANNOUNCED: Point.RELEASED, Point.DISCARDED: Point.HELD}


@dataclass(frozen=True)
class Select:
    """`vm`: "" for all. `epochs`: first and last. `expression` is run by the packet programs unless it must be run
    `here`; on what the kernel drops itself it is always run here."""

    points: frozenset[Point]
    vm: str = ""
    epochs: tuple[int, int] | None = None
    min_hold_ns: int = 0
    expression: Expression | None = None
    here: bool = False

    def kernel_points(self) -> int:
        """What the packet programs must tell: a bit for each point."""
        needed = {_SAME.get(point, point) for point in self.points}
        if self.points & _HELD_TELLS:
            needed.add(Point.HELD)
        return sum(1 << told for told, (point, _) in KERNEL.items() if point in needed)

    def of(self, events: Iterable[Event]) -> list[Event]:
        """Those that are wanted; notes of the VM are, always."""
        return [event for event in events if self._wants(event)]

    def _wants(self, event: Event) -> bool:
        if self.vm and event.vm != self.vm:
            return False
        if not isinstance(event, Frame):
            return True
        if event.point not in self.points or (event.hold_ns or 0) < self.min_hold_ns:
            return False
        if self.epochs is not None and not self.epochs[0] <= event.epoch <= self.epochs[1]:
            return False
        if self.expression is None or not self.here and event.point is not Point.LOST:
            return True
        return self.expression.takes(event.snap, event.size)


def points(text: str) -> frozenset[Point]:
    """"held,released" or "all". Raises ValueError."""
    if text == "all":
        return frozenset(Point)
    words = text.split(",")
    if unknown := [word for word in words if word not in set(Point)]:
        raise ValueError(f"there is no point {unknown[0]!r}", f"points are {', '.join(Point)}; or all")
    return frozenset(Point(word) for word in words)


def epochs(text: str) -> tuple[int, int]:
    """"1842" or "1842-1850". Raises ValueError."""
    first, dash, last = text.partition("-")
    if not first.isdigit() or (dash and not last.isdigit()) or len(text) > 40:
        raise ValueError(f"{text!r} is no epoch", "write a number, or two with a dash between")
    return int(first), int(last or first)


def packet(text: str) -> tuple[int, int] | None:
    """EPOCH.SEQ; None for "next". Raises ValueError."""
    if text == "next":
        return None
    epoch, _, seq = text.partition(".")
    if not (epoch.isdigit() and seq.isdigit()) or len(text) > 40:
        raise ValueError(f"{text!r} names no packet", "write EPOCH.SEQ as the trace shows it, or next")
    return int(epoch), int(seq)


