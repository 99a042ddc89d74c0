# SPDX-License-Identifier: GPL-2.0-or-later
"""The other host runs the VM: this one receives whole epochs and what the VM received since, and can go on.

One epoch arrives in `message`: pieces wait aside, COMMIT makes it whole, it is acknowledged, then applied: to memory
here, to the images of its disks by `vmlink/disk/apply.py`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from appliance import config as cfg
from appliance import core
from appliance.backup_disks import BackupDisks
from appliance.errors import HoldfastError, told
from appliance.first_copy import SyncOffer, offer_of
from appliance.journal import Journal
from appliance.outbound import EPOCH_BYTES
from appliance.peer import Peer
from appliance.replay import ReplayLog
from appliance.spoken import understood
from appliance.volumes import Volumes
from vmlink import inject
from vmlink.disk.spec import UNDER_WAY
from vmlink.errors import VmError
from vmlink.qemu import Qemu
from vmlink.ram import GuestRam
from vmlink.replica import Replica
from vmlink.volume.withheld import Pending
from vmlink.wire import Ack, Buffer, Commit, Message, Type, WireError, decode_frames, decode_pieces

OF_DISKS = (Type.DISK_BEGIN, Type.DISK_ASK, Type.DISK_READ)
MAX_EPOCHS = 128
"""Epochs whose output may wait to be known as released; more than may ever be in flight."""
log = logging.getLogger("holdfast.backup")


class Backup:
    """See the module. `post` takes what the decision core must hear."""

    def __init__(self, name: str, vm: cfg.Vm, vm_id: int, copy: int, qemu: Qemu, ram: GuestRam,
                 disks: BackupDisks | None, volumes: Volumes | None, peer: Peer, journal: Journal,
                 post: Callable[[core.Event], None],
                 follow: Callable[[dict[str, int], dict[str, int]], Awaitable[None]]) -> None:
        self._name, self._id, self._copy, self._qemu, self._ram, self.disks = name, vm_id, copy, qemu, ram, disks
        self._peer, self._journal, self._post, self._follow, self.volumes = peer, journal, post, follow, volumes
        own, shared = disks.sizes if disks else [], volumes.sizes if volumes else []
        under_way = UNDER_WAY * (len(own) + len(shared))  # what a pause lets in beyond the limit
        most = vm.limits.in_flight + vm.limits.disk + under_way + ram.size
        self.replica = Replica(ram.pages, most, [*own, *shared])
        self._own = len(own)
        self._pending = Pending(2 * vm.limits.disk + under_way)
        self.replay = ReplayLog(vm.limits.replay_log)
        self._sent: dict[int, list[bytes]] = {}
        """By epoch: small frames that the VM sent, of epochs not known to be released."""

    async def close(self) -> None:
        """Take nothing more."""
        if self.disks is not None:
            await self.disks.close()

    async def message(self, message: Message) -> None:
        """One message of the primary's stream. Raises WireError when it makes no sense."""
        payload = decode_pieces(message)
        if message.type is Type.SYNC and message.epoch != self._copy:
            return  # meant for a replica that is gone: the primary will hear of it
        if message.type is Type.SYNC:
            await self._begin(message.term, payload)
        elif message.term != self.replica.term:
            return  # of a reign or a copy that is over
        elif message.type is Type.PAGES:
            self.replica.add_pages(message.epoch, payload)
        elif message.type is Type.ZEROS:
            self.replica.add_zeros(message.epoch, payload)
        elif message.type is Type.DEVICE:
            self.replica.add_device(message.epoch, payload)
        elif message.type is Type.DISK:
            copied = self.replica.add_disk(message.epoch, payload)
            if any(number >= self._own for number, _ in copied):
                raise WireError("a piece of a first copy that is of no disk: volumes have none")
            if copied and self.disks is not None:
                self.disks.copy(copied)
        elif message.type in OF_DISKS and self.disks is not None:
            self.disks.message(message, payload)
        elif message.type is Type.INBOUND:
            self.replay.add(decode_frames(payload))
        elif message.type is Type.OUTBOUND:
            self._keep_output(message.epoch, payload)
        elif message.type is Type.COMMIT:
            await self._commit(message.epoch, Commit.decode(payload))
        else:
            raise WireError(f"a backup takes no {message.type.name}")

    async def _begin(self, term: int, payload: bytes | bytearray | memoryview) -> None:
        offer = understood(payload, SyncOffer, "an offer")
        own = await offer_of(self._qemu, self._ram, self.volumes)
        if (offer.disks, offer.slots) != (own.disks, own.slots):
            try:
                await self._follow(offer.disks, offer.slots)
            except (VmError, HoldfastError) as error:
                self._post(core.ReplicaUnfit(f"its disks differ between the hosts: {told(error)}"))
            return
        if offer != own:
            differ = ", ".join(f"{field} {getattr(offer, field)} there, {getattr(own, field)} here"
                               for field in offer.__struct_fields__ if getattr(offer, field) != getattr(own, field))
            self._post(core.ReplicaUnfit(f"the VM differs between the hosts ({differ}): both need the same QEMU, "
                                         "kernel, initrd and [vm] settings, disks of the same size, and the very same "
                                         "volumes"))
            return
        self._post(core.ReplicaReady())  # before the old replica goes: nobody may take over from half of one
        self.replica.begin(term)
        self.replay.clear()
        self._pending.clear()
        self._sent.clear()
        if self.disks is not None:
            self.disks.offer(term)
        self._journal.event("sync-begin", term=term)

    def _keep_output(self, epoch: int, payload: Buffer) -> None:
        if epoch != self.replica.epoch + 1 or len(payload) > 2 * EPOCH_BYTES or len(self._sent) > MAX_EPOCHS:
            raise WireError(f"{len(payload)} bytes of output for epoch {epoch} after {self.replica.epoch}")
        self._sent[epoch] = [frame for _, frame in decode_frames(payload)]

    async def _commit(self, epoch: int, commit: Commit) -> None:
        writes = self.replica.commit(epoch, commit)
        self._journal.sums.epochs["received"] += 1
        self._journal.trail.committed(self.replica.term, epoch)
        inject.point("replica.received")
        if epoch == 1:
            self._journal.event("sync-done", term=self.replica.term)
            self._post(core.ReplicaWhole())
        if self.volumes is not None:
            shared = [(number - self._own, write) for number, write in writes if number >= self._own]
            if not self._pending.add(epoch, shared, commit.stored):
                raise WireError(f"the volumes lack more than the {self._pending.limit} bytes that may wait for them")
            writes = [(number, write) for number, write in writes if number < self._own]
        if self.disks is not None:
            self.disks.commit(self.replica.term, epoch, writes)
        else:
            self._peer.send(Message(Type.ACK, self._id, self.replica.term, epoch, (Ack().encode(),)))
        inject.point("replica.acked")
        self.replay.trim(commit.consumed)
        self._sent = {number: frames for number, frames in self._sent.items() if number > commit.released}
        await self.replica.apply()
        inject.point("replica.applied")

    def unreleased(self) -> list[bytes]:
        """Small frames of whole epochs that clients may not have got, in the order they were sent."""
        return [frame for epoch in sorted(self._sent) if epoch <= self.replica.epoch for frame in self._sent[epoch]]

    def discarded(self) -> tuple[int, list[bytes]]:
        """The epoch of which not all has arrived, and small frames of it: nobody has seen them, nobody will."""
        epoch = self.replica.epoch + 1
        return epoch, self._sent.get(epoch, [])

    async def take_over(self, term: int, finish_disks: Callable[[], Awaitable[None]]) -> None:
        """Finish the last whole epoch, load it and run under `term`. `finish_disks` gives their images free for the VM.

        Raises VmError when QEMU does not come up.
        """
        self.replica.abandon()
        if self.volumes is not None:
            self.volumes.take_over(term, self._pending.take())
        await asyncio.gather(self.replica.apply(), finish_disks())
        await self._qemu.monitor.load_devices(self.replica.device_state())
        inject.point("takeover.loaded")
