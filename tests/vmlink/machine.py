# SPDX-License-Identifier: GPL-2.0-or-later
"""Real QEMUs for the tests: firmware only (0.2 s to start), or the guest image."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from appliance.tap import open_tap
from vmlink.disk.drive import Drives
from vmlink.qemu import Qemu, VmSpec
from vmlink.ram import GuestRam

MIB = 1 << 20
SHM = Path("/dev/shm")
MAC = "52:54:00:77:01:10"
IMAGE = Path(__file__).resolve().parents[2] / "build/image"

_numbers = itertools.count()


def spec(**changes: object) -> VmSpec:
    """A VM that has nothing to boot: its firmware runs."""
    facts: dict[str, object] = {"name": "vmt", "memory_bytes": 32 * MIB, "vcpus": 1, "mac": MAC, "kernel": None,
                                "initrd": None, "append": "", "accel": "tcg"}
    return VmSpec(**(facts | changes))  # type: ignore[arg-type]


def guest_spec(**changes: object) -> VmSpec:
    """The guest image: redis, HTTP, echo at 10.77.0.10."""
    append = json.loads((IMAGE / "manifest.json").read_text())["append"]
    facts: dict[str, object] = {"memory_bytes": 128 * MIB, "kernel": IMAGE / "vmlinuz",
                                "initrd": IMAGE / "initrd.img", "append": f"{append} hf.ip=10.77.0.10/24"}
    return spec(**(facts | changes))


def tap_name() -> str:
    """A device name nobody else uses."""
    return f"hfv{os.getpid() % 1000000}x{next(_numbers)}"


@contextlib.asynccontextmanager
async def machine(run_dir: Path, vm: VmSpec | None = None, *, incoming: bool = False, tap: str = "",
                  ram_dir: Path = SHM, drives: Drives | None = None) -> AsyncIterator[tuple[Qemu, GuestRam]]:
    """A started QEMU and its memory; all of it is gone afterwards."""
    vm = vm or spec()
    ram = GuestRam.create(ram_dir, vm.memory_bytes)
    fd = open_tap(tap or tap_name())
    try:
        try:
            qemu = await Qemu.start(vm, ram, tap_fd=fd, incoming=incoming, run_dir=run_dir,
                                    drives=drives)
        finally:
            os.close(fd)
        try:
            yield qemu, ram
        finally:
            await qemu.kill()
    finally:
        ram.close()


async def until(condition: Callable[[], bool], what: str, timeout: float = 60.0) -> None:
    """Wait for `condition`; fails with `what`."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout:g} s"
        await asyncio.sleep(0.01)


async def booted(qemu: Qemu) -> None:
    """Wait for the guest's word that it is up."""
    await until(lambda: "HOLDFAST GUEST READY" in qemu.console_log.read_text(errors="replace"), "guest boots")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still, as on a host in trouble."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
