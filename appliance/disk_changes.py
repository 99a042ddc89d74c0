# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk of a VM that runs here grows, comes or goes. Only while nothing is replicated.

What the image will be is on disk before it is; the other host's copy of what is new is listed as to be made.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from appliance.disks import Disks
from vmlink import inject
from vmlink.disk.drive import Drive, Drives
from vmlink.disk.images import Images
from vmlink.disk.mirror import Mirror
from vmlink.disk.plug import answered, ask_to_let_go, close, plug_in
from vmlink.disk.resize import Stranded, resize
from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError
from vmlink.qemu import Qemu

LET_GO = 10.0
"""Seconds for the guest to let go of a disk."""


class DiskChanges:
    """See the module. `hear` is to get every event of QEMU's. One change at a time; each raises VmError, and all is as
    before."""

    def __init__(self, disks: Disks, drives: Drives, qemu: Qemu, mirror: Mirror) -> None:
        self._disks, self._drives, self._qemu, self._mirror = disks, drives, qemu, mirror
        self._asked: dict[str, asyncio.Future[bool]] = {}

    def hear(self, event: str, data: Mapping[str, object]) -> None:
        """Does the guest answer what it was asked?"""
        disk, gone = answered(event, data) or ("", False)
        if disk in self._asked and not self._asked[disk].done():
            self._asked[disk].set_result(gone)

    async def resize(self, disk: str, size: int, stand_in: Path) -> float:
        """The disk has `size` bytes, more than before; returns for how long the VM was paused, in seconds.
        `stand_in`: a path for a file that lasts as long."""
        drive = self._drive(disk)
        await self._disks.remember(Images.growing, disk, size)
        inject.point("disk.resize.noted")
        begun = time.monotonic()
        await self._qemu.stop()
        try:
            await resize(self._qemu.monitor, drive, size, self._drives.server.address, stand_in)
            drive.grow(size)
            self._mirror.of(self._drives)
        except Stranded:
            await self._qemu.kill()
            raise
        except VmError:
            await self._qemu.cont()
            raise
        await self._qemu.cont()
        paused = time.monotonic() - begun
        inject.point("disk.resize.done")
        await self._disks.remember(Images.grown, disk, size)
        return paused

    async def add(self, disk: DiskSpec, size: int) -> None:
        """The VM gets this disk, whose image has `size` bytes."""
        drive = self._drives.add(disk, size)
        self._mirror.of(self._drives)
        try:
            await self._disks.remember(Images.add, disk, size, [each.spec.name for each in self._drives])
            inject.point("disk.plug.noted")
            await plug_in(self._qemu.monitor, disk, self._drives.server.address)
        except VmError:
            await self._forget(drive)
            raise
        inject.point("disk.plug.done")

    async def let_go(self, disk: str) -> None:
        """Have the guest let go of a disk; whatever it does, the image stays open. The VM may be protected."""
        self._asked[disk] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(LET_GO):
                if not await ask_to_let_go(self._qemu.monitor, disk) or await self._asked[disk]:
                    return
            raise VmError(f"the guest refuses to let go of disk {disk}", "nothing in it may use the disk: unmount it")
        except TimeoutError:
            raise VmError(f"the guest has not let go of disk {disk} within {LET_GO:g} s",
                          "it keeps it; once its system is up and nothing uses the disk, repeat the command") from None
        finally:
            del self._asked[disk]

    async def take_out(self, disk: str) -> None:
        """The guest has let go: close the image."""
        drive = self._drive(disk)
        await close(self._qemu.monitor, drive.spec)
        await self._forget(drive)
        inject.point("disk.unplug.done")

    async def _forget(self, drive: Drive) -> None:
        self._drives.remove(drive.spec.name)
        self._mirror.of(self._drives)
        await self._disks.remember(Images.remove, drive.spec.name)

    def _drive(self, disk: str) -> Drive:
        drive = self._drives.find(disk)
        assert drive is not None
        return drive
