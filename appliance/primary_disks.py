# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a VM that runs here: what it writes goes with its epochs, and where the other host's copies may differ
is known from the first moment to the last.
"""

from __future__ import annotations

import asyncio

from appliance.disk_rounds import DiskRounds
from appliance.disks import Disks, Past
from appliance.peer import Peer
from vmlink.disk.drive import Drives
from vmlink.disk.record import Record
from vmlink.qemu import Qemu
from vmlink.wire import Ack


class PrimaryDisks:
    """See the module. `rate`: bytes a second that a copy may read; 0: as many as it can."""

    def __init__(self, disks: Disks, drives: Drives, past: Past, qemu: Qemu, peer: Peer, vm: int, rate: int) -> None:
        self._disks, self.drives, self._qemu, self._peer, self._vm, self._rate = disks, drives, qemu, peer, vm, rate
        self._mirror = disks.mirror(drives, past)
        self.drained = False
        """Is the VM paused for good, all it wrote done?"""
        self.given = 0
        """The last epoch, of a VM that was handed over: the other host has all of it."""

    def rounds(self, term: int, stopping: asyncio.Event) -> DiskRounds:
        """A first copy of them."""
        return DiskRounds(self._disks, self.drives, self._qemu, self._mirror, self._peer, self._vm, term, self._rate,
                          stopping)

    def acknowledged(self, epoch: int, ack: Ack) -> None:
        """The backup has this epoch."""
        self.drives.acknowledged(epoch)
        self._mirror.confirm(ack.durable)

    def alone(self) -> None:
        """No epoch follows: what the VM writes is listed for the next copy. Idempotent."""
        self.drives.record_off()
        self._mirror.lost()

    def back(self) -> None:
        """The VM was handed over, and goes on here after all."""
        self.given = 0
        self.alone()

    async def leave(self) -> None:
        """The VM has ended: remember what the next copy has to do. Raises VmError."""
        if self.given:
            await self._disks.handed_over(self._mirror.at(self.given))
        elif self.drained:
            await self._disks.rest(self._mirror, self.drives)


def cut(disks: PrimaryDisks | None) -> list[Record]:
    """What each disk recorded in the epoch that ends now, while the VM is paused."""
    return disks.drives.cut() if disks is not None else []
