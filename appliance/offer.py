# SPDX-License-Identifier: GPL-2.0-or-later
"""What this host has for VMs, measured anew every few seconds.

Sources: /proc/meminfo, the memory controller of the service's cgroup and [host] memory_limit, whichever leaves least;
statvfs of [host] ram_dir; /proc/cpuinfo; /sys/class/net/*/bridge; statvfs of the state directory; QEMU.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from appliance import config as cfg
from appliance.capacity import Emulator, Offer
from vmlink import accel
from vmlink.errors import VmError

AGAIN = 5.0
"""Seconds between two measurements."""
_TIMEOUT = 10.0
_CGROUP = Path("/sys/fs/cgroup")


class Stock:
    """Keeps this host's Offer. `qemus`: of our VMs, their process and guest memory in bytes; `changed` hears when the
    offer is another."""

    def __init__(self, config: cfg.Config, qemus: Callable[[], Iterable[tuple[int, int]]],
                 changed: Callable[[], None]) -> None:
        self._config, self._qemus, self._changed = config, qemus, changed
        self.here: Offer | None = None
        """The last measurement."""

    async def run(self) -> None:
        while True:
            offer = await self.measure()
            before, self.here = self.here, offer
            if offer != before:
                self._changed()
            await asyncio.sleep(AGAIN)

    async def measure(self) -> Offer:
        """Look now."""
        emulators = {name: await self._emulator(vm) for name, vm in self._config.vm.items()}
        return await asyncio.get_running_loop().run_in_executor(None, self._measure, emulators, list(self._qemus()))

    async def _emulator(self, vm: cfg.Vm) -> Emulator:
        program = shutil.which(vm.qemu)
        if program is None:
            return Emulator(trouble=f"there is no program {vm.qemu}")
        try:
            version = await asyncio.get_running_loop().run_in_executor(None, _version, program,
                                                                       os.stat(program).st_mtime_ns)
            return Emulator(version, (await accel.choose(vm.accel, program)).name)
        except (VmError, OSError, subprocess.SubprocessError) as error:
            return Emulator(trouble=str(error)[:400])

    def _measure(self, emulators: dict[str, Emulator], qemus: list[tuple[int, int]]) -> Offer:
        host = self._config.host
        vendor, flags = _processor()
        ram = _free(host.ram_dir) + sum(guest for _, guest in qemus)
        disk = _free(host.state_dir if host.state_dir.exists() else Path("/"))
        return Offer(self._memory([pid for pid, _ in qemus]), _rounded(ram), os.cpu_count() or 1, platform.machine(),
                     vendor, flags, _rounded(disk), _bridges(), emulators)

    def _memory(self, pids: list[int]) -> int:
        taken = sum(map(_resident, pids))
        limits = [_meminfo("MemAvailable") + taken]
        if (left := _cgroup_left()) is not None:
            limits.append(left + taken)
        if self._config.host.memory_limit:
            limits.append(self._config.host.memory_limit)
        return _rounded(min(limits))


def _free(directory: Path) -> int:
    facts = os.statvfs(directory)
    return facts.f_bavail * facts.f_frsize


def _rounded(size: int) -> int:
    """Down to 16 MiB: what wobbles a little is no news."""
    return size >> 24 << 24


@cache
def _version(program: str, _changed: int) -> str:
    """As QMP tells it too, such as "7.2.22 (Debian ...)"; asked once for each state of the file."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_TIMEOUT, check=True).stdout
    return said.partition("version ")[2].partition("\n")[0][:128] or "unknown"


def _resident(pid: int) -> int:
    try:
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0


def _meminfo(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _cgroup_left() -> int | None:
    """Bytes that the service's cgroup, or one above it, still lets it have; None without such a limit."""
    try:
        own = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return None
    place, left = _CGROUP / own, []
    for group in (place, *place.parents):
        if not group.is_relative_to(_CGROUP):
            break
        try:
            most = (group / "memory.max").read_text().strip()
            if most != "max":
                left.append(int(most) - int((group / "memory.current").read_text()))
        except (OSError, ValueError):
            continue
    return min(left, default=None)


def _processor() -> tuple[str, frozenset[str]]:
    """Vendor and flags of the first processor; empty where the kernel does not tell."""
    try:
        told = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return "", frozenset()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in told.splitlines())}
    return fields.get("vendor_id", "")[:128], frozenset(fields.get("flags", fields.get("Features", "")).split())


def _bridges() -> frozenset[str]:
    return frozenset(entry.parent.name for entry in Path("/sys/class/net").glob("*/bridge"))
