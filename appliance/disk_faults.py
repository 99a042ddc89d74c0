# SPDX-License-Identifier: GPL-2.0-or-later
"""What is done when a disk of a VM that runs here fails.

A read that the local image cannot answer is answered by the other host's copy, without a word to the VM. A write or
flush that the image does not take stops the VM. While the other host has a whole copy, the image is left: that it is
not whole is remembered on disk first, then the VM goes on with the other copy alone. Otherwise the request is made
again every few seconds, until there is room again, or the storage is back, or there is another copy.

Invariant (nothing acknowledged is lost): a VM is never started from an image that was left; and what clients hear from
then on, and have heard before, the other host has on its disks, and not in its memory alone (`relying`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from appliance.disks import Disks
from appliance.journal import Journal
from appliance.watched import watched
from vmlink.disk.drive import Drive, Drives
from vmlink.disk.fault import Fault, Place, leave, understand
from vmlink.errors import VmError
from vmlink.qemu import Qemu

RETRY = 2.0
"""Seconds between two tries."""
FORGIVEN = 10.0
"""Seconds without a further fault after which a disk counts as well again."""
WELL: Mapping[str, object] = {"trouble": None, "vm_waits": False, "left": False}
"""The status of a disk without any."""
log = logging.getLogger("holdfast.disks")


@dataclass
class Trouble:
    """What is wrong with a disk. `writes`: does its image miss writes, or would it? `stopped`: the VM waits for it.
    `at`: when it was noticed last, in the time of the event loop."""

    cause: str
    writes: bool
    stopped: bool
    at: float


class DiskFaults:
    """See the module. `hear` is to get every event of QEMU's, until `close`."""

    def __init__(self, disks: Disks, drives: Drives, qemu: Qemu, journal: Journal) -> None:
        self._disks, self._drives, self._qemu, self._journal = disks, drives, qemu, journal
        self._loop = asyncio.get_running_loop()
        self._troubles: dict[str, Trouble] = {}
        self._care: asyncio.Task[None] | None = None
        self.relying = False
        """Must what is let out be on the other host's disks before?"""
        self.missed = False
        """Has an image not taken a write or a flush? What it holds is not certain any more."""

    def close(self) -> None:
        """Do nothing more. Idempotent."""
        if self._care is not None:
            self._care.cancel()

    # --- what is known ---

    @property
    def away(self) -> bool:
        """Does the VM live on the other host's copy of one of its disks?"""
        return any(drive.away for drive in self._drives)

    def reason(self) -> str:
        """Why the VM were better off on the other host; empty when its disks are well."""
        return "; ".join(f"disk {name}: {trouble.cause}" for name, trouble in sorted(self._troubles.items()))

    def status(self, name: str) -> dict[str, object]:
        """Of one disk, for the status reply."""
        trouble, drive = self._troubles.get(name), self._drive(name)
        return {"trouble": trouble.cause if trouble is not None else None,
                "vm_waits": trouble is not None and trouble.stopped,
                "left": drive is not None and drive.away}

    # --- what is done ---

    def hear(self, event: str, data: Mapping[str, object]) -> None:
        fault = understand(event, data)
        if fault is None:
            return
        before = self._troubles.get(fault.disk)
        if before is None or before.cause != str(fault):
            log.warning("disk %s: %s", fault.disk, fault)
            self._journal.event("disk-failed", disk=fault.disk, cause=str(fault))
        self._troubles[fault.disk] = trouble = self._after(before, fault)
        self.missed |= trouble.writes
        if self._care is None or self._care.done():
            self._care = watched(self._take_care(), "care for failed disks")

    def _after(self, before: Trouble | None, fault: Fault) -> Trouble:
        stopped = fault.place is Place.REQUEST
        writes = fault.operation != "read" and (not stopped or self._drives.server.serves(fault.disk))
        return Trouble(str(fault), writes or before is not None and before.writes,
                       stopped or before is not None and before.stopped, self._loop.time())

    async def _take_care(self) -> None:
        while self._troubles:
            for name, trouble in list(self._troubles.items()):
                drive = self._drive(name)
                if drive is not None and trouble.writes and not drive.away and self._drives.source is not None:
                    await self._leave(drive)
            await self._go_on()
            await asyncio.sleep(RETRY)
            self._forgive()

    async def _leave(self, drive: Drive) -> None:
        name, self.relying = drive.spec.name, True
        try:
            await self._drives.settled()
            await self._disks.fail(name)  # on disk before the image misses anything
            await leave(self._qemu.monitor, drive, self._drives.server.address)
        except (VmError, OSError) as error:
            self.relying = self.away
            log.error("disk %s: the VM cannot go on with the other host's copy: %s", name, error)
            return
        log.warning("disk %s: the VM goes on with the other host's copy", name)
        self._journal.event("disk-left", disk=name)

    async def _go_on(self) -> None:
        """Let a VM that was stopped make its request again; if it fails again that will be heard."""
        if any(trouble.stopped for trouble in self._troubles.values()):
            for trouble in self._troubles.values():
                trouble.stopped = False
            try:
                await self._qemu.retry()
            except VmError as error:
                log.warning("cannot resume after a failed request: %s", error)

    def _forgive(self) -> None:
        for name, trouble in list(self._troubles.items()):
            drive = self._drive(name)
            if not (drive is not None and drive.away) and self._loop.time() - trouble.at > FORGIVEN:
                del self._troubles[name]
                log.info("disk %s is well again", name)
                self._journal.event("disk-well", disk=name)

    def _drive(self, name: str) -> Drive | None:
        return next((drive for drive in self._drives if drive.spec.name == name), None)
