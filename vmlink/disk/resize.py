# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk becomes larger: below a VM that is paused for a moment, or while no VM uses its image.

QEMU's quorum has one size for its life, and so has its link to us. So the device is given a stand-in meanwhile: a file
without content. When that grows, QEMU tells the guest, which looks at the size once it runs on, and finds the new
quorum's. It reads nothing of the stand-in: it is paused.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from vmlink.disk.drive import Drive
from vmlink.disk.plug import named
from vmlink.disk.spec import DiskSpec, device, joined
from vmlink.errors import VmError
from vmlink.monitor import Monitor

ENLARGE_TIMEOUT = 60.0
"""Seconds to enlarge an image that nobody uses."""


class Stranded(VmError):
    """The guest's disk is neither what it was nor what it should become: the VM must not run on."""


async def resize(monitor: Monitor, drive: Drive, size: int, server: str, stand_in: Path) -> None:
    """Give the disk of a paused VM `size` bytes; its marks are the caller's. `stand_in`: a path that nobody uses.

    Raises VmError, and all is as before; or Stranded.
    """
    swap, before = _Swap(monitor, drive, server), drive.size
    _make(stand_in, before)
    try:
        await swap.away(stand_in)
        try:
            await swap.join(size)
        except VmError:
            await swap.back(before)
            raise
        await swap.back(size)
    finally:
        os.unlink(stand_in)


def _make(stand_in: Path, size: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        stand_in.unlink()
    with open(stand_in, "xb") as file:
        file.truncate(size)


class _Swap:
    """The steps of it, for one disk."""

    def __init__(self, monitor: Monitor, drive: Drive, server: str) -> None:
        self._monitor, self._drive, self._server = monitor, drive, server
        self._within = f"resizing disk {drive.spec.name}"
        self._node = f"{drive.spec.name}-stand-in"

    async def _call(self, command: str, **arguments: object) -> object:
        return await self._monitor.call(command, arguments, within=self._within)

    async def _show(self, node: str) -> None:
        await self._call("qom-set", path=f"/machine/peripheral/{device(self._drive.spec.name)}", property="drive",
                         value=node)

    async def away(self, stand_in: Path) -> None:
        """The device has the stand-in."""
        await self._call("blockdev-add", **{"driver": "file", "node-name": self._node, "filename": str(stand_in),
                                            "locking": "off"})
        try:
            await self._show(self._node)
        except VmError:
            await self._call("blockdev-del", **{"node-name": self._node})
            raise

    async def join(self, size: int) -> None:
        """The image and a link of this size, as a quorum."""
        nodes = joined(self._drive.spec, self._server)
        there = await named(self._monitor)
        for node in reversed(nodes):
            if node["node-name"] in there:
                await self._call("blockdev-del", **{"node-name": node["node-name"]})
        await self._call("block_resize", **{"node-name": f"{self._drive.spec.name}-local", "size": size})
        self._drive.size = size
        for node in nodes:
            await self._call("blockdev-add", **node)

    async def back(self, size: int) -> None:
        """The device has a quorum of this size, and the guest looks at it."""
        try:
            if self._drive.size != size or not {self._drive.spec.name} <= await named(self._monitor):
                await self.join(size)
            await self._call("block_resize", **{"node-name": self._node, "size": size})
            await self._show(self._drive.spec.name)
            await self._call("blockdev-del", **{"node-name": self._node})
        except VmError as error:
            raise Stranded(error.message, "the VM cannot go on: it starts afresh from its images") from error


def enlarge(disk: DiskSpec, size: int) -> None:
    """Give the image of a disk that nobody uses `size` bytes; what it gains is zeros. Blocks. Raises VmError."""
    now = disk.look()
    if now == size:
        return
    if now > size:
        raise VmError(f"{disk}: it has {now} bytes, the VM's disk {size}",
                      "no image becomes smaller: make a new one under another name, and rename it")
    if disk.path.is_block_device():
        raise VmError(f"{disk}: the device has {now} bytes, the VM's disk {size}", "enlarge the device")
    try:
        if disk.format == "raw":
            _enlarge_file(disk.path, size)
            return
        done = subprocess.run(["qemu-img", "resize", "-q", "-f", disk.format, str(disk.path), str(size)],
                              capture_output=True, text=True, timeout=ENLARGE_TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _too_large(disk, size, str(error)) from None
    if done.returncode:
        raise _too_large(disk, size, done.stderr.strip()[-500:])


def _too_large(disk: DiskSpec, size: int, cause: str) -> VmError:
    return VmError(f"{disk}: it cannot be enlarged to {size} bytes: {cause}", "look at the storage below it")


def _enlarge_file(path: Path, size: int) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)
