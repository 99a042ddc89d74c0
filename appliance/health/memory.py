# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of this host: what is left of it, whether work waits for it, and what its error correction counted."""

from __future__ import annotations

from pathlib import Path

from appliance.health import kernel_files
from appliance.health.judge import Rule
from appliance.health.monitor import Assessor, Counter, Lately
from appliance.health.reading import Reading
from appliance.health.settings import Health

_MIB = 1 << 20
_MEMORY_CONTROLLERS = "devices/system/edac/mc"
LATELY = 600.0
"""Seconds for which a corrected error is told."""


class Memory:
    """The monitor `memory`. `proc`, `sys`: where those are mounted."""

    name = "memory"

    def __init__(self, health: Health, *, proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self.interval = health.interval
        self._proc, self._sys = proc, sys
        self._assess = Assessor(self.name, health.rounds, health.settle)
        self._counter = Counter()
        self._corrected, self._uncorrected = Lately(LATELY), 0.0
        self._available = Rule(health.memory_warn / _MIB, health.memory_min / _MIB, above=False)
        self._pressure = Rule(health.pressure_warn)

    def close(self) -> None:
        """Nothing is held between two readings."""

    async def read(self) -> list[Reading]:
        return [self._left(), self._waiting(), self._errors("corrected", "ce_count"),
                self._errors("uncorrected", "ue_count")]

    def _left(self) -> Reading:
        source = f"{self._proc}/meminfo MemAvailable"
        for line in (kernel_files.text(self._proc / "meminfo") or "").splitlines():
            words = line.split()
            if words[:1] == ["MemAvailable:"] and words[1].isdigit():
                return self._assess.value("available", int(words[1]) / 1024, self._available, unit="MiB",
                                          source=source, digits=0)
        return self._assess.unknown("available", "the kernel does not tell", source)

    def _waiting(self) -> Reading:
        file = self._proc / "pressure" / "memory"
        share = kernel_files.pressure(file, "full")
        if share is None:
            return self._assess.unknown("pressure", "the kernel measures no pressure (psi=1)", str(file))
        return self._assess.value("pressure", share, self._pressure, source=f"{file} full avg10")

    def _errors(self, kind: str, name: str) -> Reading:
        """What cannot be corrected has spoilt something: the host stays unfit until its service is started anew."""
        files, subject = self._sys / _MEMORY_CONTROLLERS, f"errors {kind}"
        source = f"{files}/mc*/{name}"
        count = kernel_files.total(files.glob(f"mc[0-9]*/{name}"))
        if count is None:
            return self._assess.unknown(subject, "no EDAC driver has found a memory controller", source)
        new = self._counter.grown(subject, count)
        if kind == "corrected":
            return self._assess.value(subject, sum(self._corrected.add(new)), Rule(warn=1.0), digits=0,
                                      unit=f"in {LATELY / 60:g} min", source=source)
        self._uncorrected += new
        return self._assess.value(subject, self._uncorrected, Rule(failed=1.0, rounds=1), digits=0,
                                  unit="since the start", source=source)
