# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a VM on the host that runs it: what it writes is marked, or recorded for the other host.

Marked (`dirty`) while there is no replica that follows; recorded while there is one, so that each change is in the
marks, or in a record that goes with an epoch, and never in neither. What changes between the two, and `cut`, happens
while the VM is paused and its disks are drained: nothing is under way then.

Invariant (nothing acknowledged is lost): a write is answered only when it is in a record, or when the local image
takes it too. A disk that has lost its local image (`away`) takes no write that is not recorded.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence

import numpy as np

from vmlink import inject
from vmlink.disk.dirty import DirtyBlocks, Unconfirmed
from vmlink.disk.record import SECTOR, WRITE_COST, Kind, Overlay, Record, Write, lay
from vmlink.disk.server import DiskServer
from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError
from vmlink.wire import Buffer

LOOK_TIMEOUT = 10.0
"""Seconds within which the images must have been looked at."""

Source = Callable[[int, int, int], Awaitable[Buffer]]
"""Reads `length` bytes at `offset` of the disk of this index from the other host's copy; raises OSError. The answer
holds every epoch that was acknowledged when it was asked; when it comes, that host has them all on its disks."""


class Drive:
    """One disk. `dirty` has what was written while nothing was recorded; `unconfirmed` what was sent and may not be on
    the other host's disk."""

    def __init__(self, spec: DiskSpec, index: int, size: int, drives: Drives) -> None:
        self.spec, self.index, self.size, self._drives = spec, index, size, drives
        self.dirty, self.unconfirmed = DirtyBlocks(size), Unconfirmed()
        self.record: Record | None = None
        self.away = False
        """Is the local image left out, because it failed?"""
        self.reads = 0
        """What was read through us: the local image could not."""
        self.recorded_bytes = 0
        """Data in the records of all epochs that have ended."""
        self._overlay: Overlay | None = None

    def write(self, kind: Kind, offset: int, length: int, data: Buffer) -> bool:
        """A change by the VM. Returns whether `data` is kept. Raises OSError when neither host could keep it."""
        inject.point("drive.writing")
        record = self.record
        if record is None:
            if self.away:
                raise OSError(errno.EIO, "the local image failed, and there is no other copy now")
            self.dirty.mark(offset, length)
            return False
        write = Write(kind, offset, length, data)
        record.add(write)
        self._drives.recorded(len(data) + WRITE_COST)
        if self._overlay is not None:
            self._overlay.add(write, self._drives.epoch + 1)
        inject.point("drive.recorded")
        return True

    async def read(self, offset: int, length: int) -> Buffer:
        """What the VM must see there, by the other host's copy. Raises OSError when that cannot be had now."""
        self.reads += 1
        if self._overlay is None:
            self._overlay = self._drives.unacknowledged(self)
        data = bytearray(length)
        if not self._overlay.covers(offset, length):
            # What is acknowledged while the answer is under way may be missing in it: kept here until it is laid over.
            pieces = self._overlay.pieces(offset, length)
            source = self._drives.source
            if source is None:
                raise OSError(errno.EIO, "there is no other copy now")
            data = bytearray(await source(self.index, offset, length))
            lay(pieces, offset, data)
        self._overlay.lay(offset, data)
        return data

    def forget(self, epoch: int) -> None:
        """The other host has everything up to this epoch."""
        if self._overlay is not None:
            self._overlay.forget(epoch)

    def start_record(self) -> None:
        self.record, self._overlay = Record(), None

    def cut(self, epoch: int) -> Record:
        """The record of the epoch that ends now; the next one begins."""
        record, self.record = self.record, Record()
        assert record is not None
        self.recorded_bytes += record.data_bytes
        if record.writes:
            self.unconfirmed.note(epoch, *_places(record))
        return record

    def stop_record(self) -> None:
        """From now on writes are marked; so is all that may not be on the other host's disk."""
        if self.record is not None and self.record.writes:
            self.dirty.mark_all(*_places(self.record))
        self.unconfirmed.spill(self.dirty)
        self.record, self._overlay = None, None


    def grow(self, size: int) -> None:
        """It has this many bytes from now on; what is new is marked. Not while anything is recorded."""
        self.dirty, self.size = self.dirty.grown(size), size


def _places(record: Record) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]],
                                     np.ndarray[tuple[int], np.dtype[np.int64]]]:
    offsets = np.array([write.offset for write in record.writes], np.int64)
    return offsets, np.array([write.length for write in record.writes], np.int64)


class Drives:
    """All disks of a VM, and the server that QEMU reaches them at. Use `open`.

    `limit` bounds in bytes what one epoch may record: at it `filled` is set, and the VM's writes wait for the next one.
    """

    def __init__(self, disks: Sequence[DiskSpec], sizes: Sequence[int], limit: int) -> None:
        self._limit = limit
        self._drives = [Drive(disk, index, size, self)
                        for index, (disk, size) in enumerate(zip(disks, sizes, strict=True))]
        self._names = {drive.spec.name: drive for drive in self._drives}
        self.server = DiskServer(self)
        self.source: Source | None = None
        """The other host's copy; None while it has no whole one."""
        self.epoch = 0
        """The last epoch whose record was cut."""
        self.filled = asyncio.Event()
        self._recorded = 0
        self._draining = False
        self._sent: deque[tuple[int, list[Record]]] = deque()
        """The records of epochs that are not acknowledged, by epoch."""

    @classmethod
    async def open(cls, disks: Sequence[DiskSpec], limit: int) -> Drives:
        """Look at the images. Raises VmError for the first that cannot be used."""
        loop = asyncio.get_running_loop()
        sizes = []
        for disk in disks:
            try:
                async with asyncio.timeout(LOOK_TIMEOUT):
                    sizes.append(await loop.run_in_executor(None, disk.look))
            except TimeoutError:
                raise VmError(f"{disk}: the storage does not answer within {LOOK_TIMEOUT:g} s",
                              "look at the storage below it, and at the kernel's log") from None
        return cls(disks, sizes, limit)

    def close(self) -> None:
        """End all connections. Idempotent."""
        self.server.close()

    def __iter__(self) -> Iterator[Drive]:
        return iter(self._drives)

    def __len__(self) -> int:
        return len(self._drives)

    def sizes(self) -> list[int]:
        """Bytes of each disk."""
        return [drive.size for drive in self._drives]

    def find(self, name: str) -> Drive | None:
        return self._names.get(name)

    def add(self, disk: DiskSpec, size: int) -> Drive:
        """One disk more, of which the other host has nothing. Not while anything is recorded."""
        drive = Drive(disk, len(self._drives), size, self)
        drive.dirty.mark(0, size)
        self._drives.append(drive)
        self._names[disk.name] = drive
        self._ordered()
        return drive

    def remove(self, name: str) -> None:
        """This disk is gone. Not while anything is recorded."""
        self._drives.remove(self._names.pop(name))
        self._ordered()

    def _ordered(self) -> None:
        """On both hosts a disk has its number by its place on the bus."""
        self._drives.sort(key=lambda drive: drive.spec.slot)
        for index, drive in enumerate(self._drives):
            drive.index = index

    # --- an epoch's record ---

    @property
    def recording(self) -> bool:
        return any(drive.record is not None for drive in self._drives)

    @property
    def full(self) -> bool:
        """Must the VM's writes wait for the next epoch? Not while it is being paused: what is under way must end."""
        return self._recorded >= self._limit and not self._draining

    def recorded(self, size: int) -> None:
        """A drive recorded so many bytes more."""
        self._recorded += size
        if self._recorded >= self._limit:
            self.filled.set()

    def drain(self) -> None:
        """The VM is about to be paused: let all writes in that are under way."""
        self._draining = True
        self.server.go_on()

    def record_on(self) -> None:
        """Record from now on instead of marking. While the VM is paused."""
        self.epoch = 0
        self._sent.clear()
        for drive in self._drives:
            drive.start_record()
        self._fresh()

    def record_off(self) -> None:
        """Mark from now on, and what is not surely on the other host's disk too. While the VM is paused, or when no
        epoch will follow."""
        self.source = None
        self._sent.clear()
        for drive in self._drives:
            drive.stop_record()
        self._fresh()

    def cut(self) -> list[Record]:
        """What each disk recorded in the epoch that ends now. While the VM is paused, its disks drained."""
        self.epoch += 1
        records = [drive.cut(self.epoch) for drive in self._drives] if self.recording else []
        if any(record.writes for record in records):
            self._sent.append((self.epoch, records))
        self._fresh()
        return records

    def _fresh(self) -> None:
        self._recorded, self._draining = 0, False
        self.filled.clear()
        self.server.go_on()

    # --- what the other host has ---

    def acknowledged(self, epoch: int) -> None:
        """The other host has everything up to this epoch, so that it shows it to who reads there."""
        while self._sent and self._sent[0][0] <= epoch:
            self._sent.popleft()
        for drive in self._drives:
            drive.forget(epoch)

    async def settled(self) -> None:
        """Return when the other host has on its disks all that it has acknowledged. Raises OSError."""
        if self.source is None:
            raise OSError(errno.EIO, "there is no other copy now")
        await self.source(0, 0, SECTOR)

    def durable(self, epoch: int) -> None:
        """The other host has everything up to this epoch on its disks."""
        for drive in self._drives:
            drive.unconfirmed.confirm(epoch)

    def unacknowledged(self, drive: Drive) -> Overlay:
        """What was written to the drive in epochs that are not acknowledged, and since."""
        overlay = Overlay()
        for epoch, records in self._sent:
            for write in records[drive.index].writes:
                overlay.add(write, epoch)
        for write in drive.record.writes if drive.record is not None else ():
            overlay.add(write, self.epoch + 1)
        return overlay
