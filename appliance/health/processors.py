# SPDX-License-Identifier: GPL-2.0-or-later
"""Processors of this host: how much waits for them, what a hypervisor takes away, whether they run hot.

None of it makes a host unfit: a busy host keeps its VMs, or two busy hosts would throw them back and forth.
"""

from __future__ import annotations

import os
from pathlib import Path

from appliance.health import kernel_files
from appliance.health.judge import Rule
from appliance.health.monitor import Assessor, Counter, Lately
from appliance.health.reading import Reading
from appliance.health.settings import Health

_USER_TO_STEAL = 8
"""Columns of /proc/stat that add up to all time: user nice system idle iowait irq softirq steal."""
_STEAL = 7
LATELY = 60.0
"""Seconds for which throttling is told."""


class Processors:
    """The monitor `cpu`. `proc`, `sys`: where those are mounted."""

    name = "cpu"

    def __init__(self, health: Health, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self.interval = health.interval
        self._proc, self._sys = proc, sys
        self._assess = Assessor(self.name, health.rounds, health.settle)
        self._load, self._steal = Rule(health.load_warn), Rule(health.steal_warn)
        self._counter, self._slowed = Counter(), Lately(LATELY)
        self._before: tuple[int, int] | None = None
        self._throttles = sorted(sys.glob("devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"))

    def close(self) -> None:
        """Nothing is held between two readings."""

    async def read(self) -> list[Reading]:
        return [self._busy(), self._stolen(), self._throttled()]

    def _busy(self) -> Reading:
        source = f"{self._proc}/loadavg"
        words = (kernel_files.text(self._proc / "loadavg") or "").split()
        try:
            load = float(words[0]) / (os.cpu_count() or 1)
        except (IndexError, ValueError):
            return self._assess.unknown("load", "the kernel does not tell", source)
        return self._assess.value("load", load, self._load, unit="per core", source=source)

    def _stolen(self) -> Reading:
        file = self._proc / "stat"
        words = (kernel_files.text(file) or "").partition("\n")[0].split()[1:1 + _USER_TO_STEAL]
        if len(words) < _USER_TO_STEAL or not all(word.isdigit() for word in words):
            return self._assess.unknown("steal", "the kernel does not tell", str(file))
        times = [int(word) for word in words]
        before, self._before = self._before or (0, 0), (times[_STEAL], sum(times))
        stolen, passed = self._before[0] - before[0], self._before[1] - before[1]
        return self._assess.value("steal", max(0, stolen) / passed if passed > 0 else 0.0, self._steal,
                                  source=f"{file} cpu")

    def _throttled(self) -> Reading:
        source = f"{self._sys}/devices/system/cpu/cpu*/thermal_throttle"
        count = kernel_files.total(self._throttles)
        if count is None:
            return self._assess.unknown("throttling", "these processors count no throttling", source)
        slowed = sum(self._slowed.add(self._counter.grown("throttling", count)))
        return self._assess.value("throttling", slowed, Rule(warn=1.0), digits=0, unit=f"in {LATELY:g} s",
                                  source=source)
