# SPDX-License-Identifier: GPL-2.0-or-later
"""What the epochs of one VM add up to since the service started: counts, and how long things took, in classes.

Fed once for an epoch, never for a frame. Counts never fall, so that whoever reads them now and then can subtract.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

FAST = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds: for pauses, commits and what is held."""
SLOW = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Seconds: for failovers."""


class Histogram:
    """Counts of values by upper bound, as Prometheus has them; the last class has no bound."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def cumulative(self) -> list[tuple[str, float]]:
        """Each bound, as text, with how many values are at or below it."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class Epoch(Protocol):
    """What an epoch tells; see `journal.EpochRecord`."""

    stopped_at: float
    pause: float
    pages: int
    bytes: int
    frames: int
    output_at: float
    acked_at: float
    released_at: float


class Sums:
    """See the module."""

    def __init__(self) -> None:
        self.epochs: Counter[str] = Counter(taken=0, committed=0, released=0, received=0)
        """By what became of them; `received` on the backup."""
        self.released: Counter[str] = Counter(commit=0, solo=0, again=0)
        """Frames by why they may go out: their epoch was committed; alone; sent again after a takeover."""
        self.pages = self.bytes = self.frames = 0
        """Of all epochs taken: dirty pages, bytes sent, frames held."""
        self.pause, self.commit, self.hold = Histogram(FAST), Histogram(FAST), Histogram(FAST)
        """Seconds: the VM stood still; from then until the backup had it; the longest that an epoch's output waited."""

    def taken(self, epoch: Epoch) -> None:
        self.epochs["taken"] += 1
        self.pages += epoch.pages
        self.bytes += epoch.bytes
        self.frames += epoch.frames
        self.pause.add(epoch.pause)

    def acked(self, epoch: Epoch) -> None:
        self.epochs["committed"] += 1
        self.commit.add(epoch.acked_at - epoch.stopped_at)

    def freed(self, epoch: Epoch) -> None:
        self.epochs["released"] += 1
        if epoch.frames:
            self.hold.add(epoch.released_at - epoch.output_at)
