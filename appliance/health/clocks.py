# SPDX-License-Identifier: GPL-2.0-or-later
"""Time on this host: steps of the wall clock, sleep of the machine, and how late this process wakes up.

Holdfast itself rests on CLOCK_MONOTONIC alone, which neither steps nor counts sleep. But a guest sees the wall clock,
and a host that slept or stands still was dead for its peer.
"""

from __future__ import annotations

import asyncio
import time

from appliance.health.judge import Rule
from appliance.health.monitor import Assessor, Clock, Lately
from appliance.health.reading import Reading
from appliance.health.settings import Health

LOOK = 0.25
"""Seconds between two looks at how late this process wakes up."""
LATELY = 600.0
"""Seconds for which a step or sleep is told."""
LATE = 60.0
"""Seconds for which a late wake-up is told."""


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clocks:
    """The monitor `clock`."""

    name = "clock"

    def __init__(self, health: Health, *, real: Clock = time.time, monotonic: Clock = time.monotonic,
                 boot: Clock = _boottime) -> None:
        self.interval = health.interval
        self._real, self._monotonic, self._boot = real, monotonic, boot
        self._assess = Assessor(self.name, health.rounds, health.settle, clock=monotonic, wall=real)
        self._jump, self._stall = Rule(health.clock_warn), Rule(health.stall_warn)
        self._offset, self._slept = self._offsets()
        self._late = 0.0
        self._steps, self._sleeps, self._stalls = (Lately(span, monotonic) for span in (LATELY, LATELY, LATE))
        self._expected = monotonic() + LOOK
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _offsets(self) -> tuple[float, float]:
        """Of the wall clock and of the clock that counts sleep, against the monotonic one."""
        now = self._monotonic()
        return self._real() - now, self._boot() - now

    def _look(self) -> None:
        now = self._monotonic()
        self._late = max(self._late, now - self._expected)
        self._expected = now + LOOK
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    async def read(self) -> list[Reading]:
        if self._timer is None:
            self._expected = self._monotonic() + LOOK
            self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)
        (offset, slept), late = self._offsets(), self._late
        asleep = slept - self._slept
        stepped = offset - self._offset - asleep
        self._offset, self._slept, self._late = offset, slept, 0.0
        return [
            self._assess.value("wall clock", max(self._steps.add(abs(stepped))), self._jump, unit="s",
                               source="CLOCK_REALTIME - CLOCK_BOOTTIME"),
            self._assess.value("sleep", max(self._sleeps.add(asleep)), self._jump, unit="s",
                               source="CLOCK_BOOTTIME - CLOCK_MONOTONIC"),
            self._assess.value("wake-up", max(self._stalls.add(late)), self._stall, unit="s", source="event loop"),
        ]
