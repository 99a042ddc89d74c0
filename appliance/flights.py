# SPDX-License-Identifier: GPL-2.0-or-later
"""Epochs that were taken and are not yet acknowledged, in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from appliance.gate import Mark
from appliance.journal import EpochRecord


@dataclass(frozen=True)
class Flight:
    """One of them. `mark`: the end of its output; `size`: bytes sent for it."""

    epoch: int
    mark: Mark
    size: int
    record: EpochRecord


class Flights:
    """See the module. `size`: bytes of them all. At `most` of them, or at `limit` bytes, no other may be taken."""

    def __init__(self, most: int, limit: int) -> None:
        self._most, self._limit = most, limit
        self._flights: deque[Flight] = deque()
        self.size = 0

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def full(self) -> bool:
        return len(self._flights) >= self._most or self.size >= self._limit

    def __contains__(self, epoch: object) -> bool:
        return isinstance(epoch, int) and bool(self._flights) and \
            self._flights[0].epoch <= epoch <= self._flights[-1].epoch

    def clear(self) -> None:
        self._flights.clear()
        self.size = 0

    def add(self, flight: Flight) -> None:
        self._flights.append(flight)
        self.size += flight.size

    def land(self, epoch: int) -> list[Flight]:
        """Take out those up to this epoch."""
        landed = []
        while self._flights and self._flights[0].epoch <= epoch:
            landed.append(self._flights.popleft())
            self.size -= landed[-1].size
        return landed
