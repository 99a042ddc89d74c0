# SPDX-License-Identifier: GPL-2.0-or-later
"""Chooses the accelerator: KVM where it really runs a guest, TCG everywhere else.

/dev/kvm alone proves nothing: without a hardware back end (nested, paravirtual) KVM answers every call and
then emulates so slowly that no guest boots. So the firmware is started under KVM and has to get through in
a second, which takes some 0.1 s where KVM works.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from vmlink.errors import VmError
from vmlink.process import Child

PROBE_TIMEOUT = 1.5
"""Seconds the firmware may take under KVM, QEMU's own start included."""

_BOOTED = b"No bootable device"

_ARGUMENTS = ("-accel", "kvm", "-machine", "q35", "-m", "16", "-nodefaults", "-no-user-config",
              "-vga", "none", "-display", "none",
              "-chardev", "stdio,id=log", "-device", "isa-debugcon,iobase=0x402,chardev=log")


@dataclass(frozen=True)
class Accel:
    """The accelerator in use ("kvm" or "tcg") and why."""

    name: str
    reason: str


_probed: dict[str, Accel] = {}


async def choose(wanted: str, qemu: str) -> Accel:
    """Settle `wanted` (auto, kvm, tcg) for the program `qemu`. A probe is made once per program.

    Raises VmError when kvm is wanted and /dev/kvm cannot be used.
    """
    if wanted == "tcg":
        return Accel("tcg", "configured")
    lacking = _lacking()
    if wanted == "kvm":
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise VmError(f"accel is kvm, but {lacking}", "use accel = \"auto\", or give this host KVM")
        return Accel("kvm", "configured")
    if lacking:
        return Accel("tcg", lacking)
    if qemu not in _probed:
        _probed[qemu] = (Accel("kvm", "runs firmware") if await _runs_firmware(qemu) else
                         Accel("tcg", f"KVM did not get through the firmware in {PROBE_TIMEOUT:g} s"))
    return _probed[qemu]


def _lacking() -> str:
    """What KVM lacks on this host, "" when nothing can be said without trying."""
    if not os.path.exists("/dev/kvm"):
        return "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened"
    modules = Path("/sys/module")
    if modules.is_dir() and not any((modules / name).exists() for name in ("kvm_intel", "kvm_amd")):
        return "KVM has no hardware back end here"
    return ""


async def _runs_firmware(qemu: str) -> bool:
    seen = bytearray()
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(read_end, False)
    try:
        child = Child.spawn([qemu, *_ARGUMENTS], stdout=write_end)
    finally:
        os.close(write_end)

    def readable() -> None:
        try:
            data = os.read(read_end, 65536)
        except BlockingIOError:
            return
        seen.extend(data)
        del seen[:-4096]
        if not data or _BOOTED in seen:
            loop.remove_reader(read_end)
            done.set()

    loop.add_reader(read_end, readable)
    try:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(done.wait(), PROBE_TIMEOUT)
        return _BOOTED in seen
    finally:
        loop.remove_reader(read_end)
        os.close(read_end)
        await child.kill()
