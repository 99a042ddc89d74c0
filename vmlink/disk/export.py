# SPDX-License-Identifier: GPL-2.0-or-later
"""What a QEMU offers of its disks on a UNIX socket, so that a Store can reach the images whatever their format.

A waiting QEMU has its disks' nodes inactive: it neither reads nor locks the images. `image` opens the same image
once more, as the host that a VM migrates away from has it open; `withdraw` closes it before the VM is loaded, and the
VM's own nodes read everything anew. Of a VM that runs, `node` shows a node for reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from vmlink.errors import VmError
from vmlink.monitor import Monitor

WITHDRAW_TIMEOUT = 5.0
"""Seconds in which a withdrawn export has to be gone."""
_POLL = 0.0005


class Exports:
    """The exports of one QEMU; each has the name of its disk. `path`: the socket, replaced when it is there."""

    def __init__(self, monitor: Monitor, path: Path) -> None:
        self._monitor, self.path = monitor, path
        self._nodes: dict[str, list[str]] = {}
        self._started = False

    async def image(self, disk: str, nodes: Sequence[Mapping[str, object]]) -> None:
        """Open an image and export it for writing. `nodes`: what `blockdev-add` needs, the format's node last.

        Raises VmError: the image cannot be opened, or another process has it.
        """
        names = self._nodes.setdefault(disk, [])
        for node in nodes:
            await self._monitor.call("blockdev-add", node, within=f"opening the image of disk {disk}")
            names.append(str(node["node-name"]))
        await self._export(disk, names[-1], writable=True)

    async def shared(self, volume: str, objects: Sequence[Mapping[str, object]], node: Mapping[str, object]) -> None:
        """Open a shared volume and export it for writing, as long as this QEMU lives. `objects`: what `object-add`
        needs before. Raises VmError."""
        within = f"reaching volume {volume}"
        for needed in objects:
            await self._monitor.call("object-add", needed, within=within)
        await self._monitor.call("blockdev-add", node, within=within)
        await self._export(volume, str(node["node-name"]), writable=True)

    async def node(self, disk: str, node: str) -> None:
        """Export a node that the VM uses, for reading. Raises VmError."""
        await self._export(disk, node, writable=False)
        self._nodes[disk] = []  # not before: what is not there could not be withdrawn

    async def _export(self, disk: str, node: str, *, writable: bool) -> None:
        within = f"exporting disk {disk}"
        if not self._started:
            self.path.unlink(missing_ok=True)
            address = {"type": "unix", "data": {"path": str(self.path)}}
            await self._monitor.call("nbd-server-start", {"addr": address}, within=within)
            self._started = True
        await self._monitor.call("block-export-add", {"type": "nbd", "id": _id(disk), "node-name": node, "name": disk,
                                                      "writable": writable}, within=within)

    async def withdraw(self) -> None:
        """End all exports, whoever is connected, and close the images; they are free when this returns.

        Raises VmError.
        """
        for disk, names in list(self._nodes.items()):
            await self._monitor.call("block-export-del", {"id": _id(disk), "mode": "hard"},
                                     within=f"withdrawing disk {disk}")
            for name in reversed(names):
                await self._close(disk, name)
            del self._nodes[disk]

    async def _close(self, disk: str, node: str) -> None:
        deadline, within = time.monotonic() + WITHDRAW_TIMEOUT, f"closing the image of disk {disk}"
        while True:
            try:
                await self._monitor.call("blockdev-del", {"node-name": node}, within=within)
                return
            except VmError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_POLL)  # the export still ends

    def close(self) -> None:
        """Take the socket away; the exports end with QEMU."""
        with contextlib.suppress(OSError):
            if self._started:
                self.path.unlink(missing_ok=True)


def _id(disk: str) -> str:
    return f"holdfast-{disk}"
