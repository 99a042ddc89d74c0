# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a VM that runs here: what it writes goes with its epochs, and where the other host's copies may differ
is known from the first moment to the last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from appliance.disk_changes import DiskChanges
from appliance.disk_faults import DiskFaults
from appliance.disk_rounds import DiskRounds
from appliance.disks import Disks, Past
from appliance.journal import Journal
from appliance.partner import Partner
from appliance.peer import Peer
from vmlink.disk.drive import Drives
from vmlink.disk.record import Record
from vmlink.errors import VmError
from vmlink.qemu import Qemu
from vmlink.wire import Ack, Message, decode_pieces

log = logging.getLogger("holdfast.disks")


class PrimaryDisks:
    """See the module. `rate`: bytes a second that a copy may read; 0: as many as it can."""

    def __init__(self, disks: Disks, drives: Drives, past: Past, qemu: Qemu, peer: Peer, journal: Journal, vm: int,
                 rate: int) -> None:
        self._disks, self.drives, self._qemu, self._peer, self._vm, self._rate = disks, drives, qemu, peer, vm, rate
        self._mirror = disks.mirror(drives, past)
        self._partner = Partner(peer, vm)
        self.faults = DiskFaults(disks, drives, qemu, journal)
        self.changes = DiskChanges(disks, drives, qemu, self._mirror)
        qemu.monitor.listener = self._hear
        self.drained = False
        """Is the VM paused for good, all it wrote done?"""
        self.given = 0
        """The last epoch, of a VM that was handed over: the other host has all of it."""

    def _hear(self, event: str, data: Mapping[str, object]) -> None:
        self.faults.hear(event, data)
        self.changes.hear(event, data)

    def close(self) -> None:
        """Do nothing more for the disks. Idempotent."""
        self._qemu.monitor.listener = None
        self.faults.close()

    def rounds(self, term: int, stopping: asyncio.Event) -> DiskRounds:
        """A first copy of them. Raises VmError when they cannot be copied."""
        if self.faults.away:
            raise VmError(f"the images here are not whole ({self.faults.reason()})",
                          "the other host has the only whole copy: let it start the VM, with holdfast fence")
        self._partner.term = term
        return DiskRounds(self._disks, self.drives, self._qemu, self._mirror, self._peer, self._vm, term, self._rate,
                          stopping)

    def acknowledged(self, epoch: int, ack: Ack) -> None:
        """The backup has this epoch."""
        self.drives.acknowledged(epoch)
        self.drives.source = self._partner.read
        self._mirror.confirm(ack.durable)

    async def settled(self) -> bool:
        """May what the VM sent go out, of epochs that the other host has acknowledged? Not while it has them in its
        memory alone, if this host could not make up for that."""
        if not self.faults.relying:
            return True
        try:
            await self.drives.settled()
        except OSError as error:
            log.warning("output waits for the other host's disks: %s", error)
            return False
        return True

    def alone(self) -> None:
        """No epoch follows: what the VM writes is listed for the next copy. Idempotent."""
        self.drives.record_off()
        self._partner.lost()
        self._mirror.lost()

    def message(self, message: Message) -> None:
        """What the backup answers to a read. Raises WireError when it makes no sense."""
        if message.term == self._partner.term:
            self._partner.answered(decode_pieces(message))

    def back(self) -> None:
        """The VM was handed over, and goes on here after all."""
        self.given = 0
        self.alone()

    async def leave(self) -> None:
        """The VM has ended: remember what the next copy has to do. Raises VmError."""
        if self.faults.missed:
            return  # an image may lack what was written: all is compared
        if self.given:
            await self._disks.handed_over(self._mirror.at(self.given))
        elif self.drained:
            await self._disks.rest(self._mirror, self.drives)


def cut(disks: PrimaryDisks | None) -> list[Record]:
    """What each disk recorded in the epoch that ends now, while the VM is paused."""
    return disks.drives.cut() if disks is not None else []
