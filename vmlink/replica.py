# SPDX-License-Identifier: GPL-2.0-or-later
"""The backup's copy of a VM: whole epochs only, applied in order.

Invariant (whole epochs only): the replica's RAM and device state are those of one epoch that arrived whole,
or the replica is not usable. Pages of a running epoch wait aside; a half-received epoch is thrown away, a
half-applied one is finished before the replica is used.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmlink.disk.record import WRITE_COST, DiskWrites, decode_writes
from vmlink.errors import VmError
from vmlink.wire import Buffer, Commit, PageData, PageNumbers, WireError, decode_numbers, decode_pages

PIECE_PAGES = 512
"""Pages written to the replica before the event loop gets its turn: about 1 ms."""
PIECE_COST = 512
"""Bytes that a piece costs beyond its payload; without it a stream of empty pieces would grow without bound."""


@dataclass
class _Staged:
    """An epoch on its way in."""

    epoch: int
    pages: list[tuple[PageNumbers, PageData | int]] = field(default_factory=list)
    device: list[Buffer] = field(default_factory=list)
    writes: DiskWrites = field(default_factory=list)
    page_count: int = 0
    data_bytes: int = 0
    device_bytes: int = 0
    held: int = 0


class Replica:
    """Receives one VM's stream into `pages` (uint8, n x 4096: the guest RAM that the waiting QEMU maps).

    `limit_bytes` bounds what may wait aside; a stream that exceeds it is refused with WireError. `disks`: the size of
    each, in bytes; what is written to them is only kept here until its epoch is whole.
    """

    def __init__(self, pages: PageData, limit_bytes: int, disks: Sequence[int] = ()) -> None:
        self._ram = pages
        self._limit = limit_bytes
        self._disks = disks
        self._staged: _Staged | None = None
        self._unapplied: deque[_Staged] = deque()
        self._applying = asyncio.Lock()
        self.term = 0
        self.epoch = 0
        """The last whole epoch; 0 as long as there is none."""
        self.consumed = 0
        self.device: list[Buffer] = []
        self.synced_bytes = 0

    @property
    def whole(self) -> bool:
        """Can a takeover start from here?"""
        return self.epoch > 0

    def begin(self, term: int) -> None:
        """A first copy begins: nothing received before counts any more."""
        self.term, self.epoch, self.consumed, self.synced_bytes = term, 0, 0, 0
        self._staged, self.device = None, []
        self._unapplied.clear()

    def abandon(self) -> None:
        """Throw away the epoch that has not arrived whole (its sender is gone)."""
        self._staged = None

    def add_pages(self, epoch: int, payload: Buffer) -> None:
        """Take a PAGES payload. Epoch 0 is the first copy and goes straight to RAM: no epoch is whole yet."""
        numbers, data = decode_pages(payload, len(self._ram))
        self._add(epoch, numbers, data, len(payload))

    def add_zeros(self, epoch: int, payload: Buffer) -> None:
        """Take a ZEROS payload."""
        self._add(epoch, decode_numbers(payload, len(self._ram)), 0, len(payload))

    def _add(self, epoch: int, numbers: PageNumbers, data: PageData | int, size: int) -> None:
        if epoch == 0 and not self.whole:
            self._ram[numbers] = data
            self.synced_bytes += len(numbers) * self._ram.shape[1]
            return
        staged = self._running(epoch, size)
        staged.pages.append((numbers, data))
        staged.page_count += len(numbers)

    def add_device(self, epoch: int, payload: Buffer) -> None:
        """Take a piece of the device state."""
        staged = self._running(epoch, len(payload))
        staged.device.append(payload)
        staged.device_bytes += len(payload)

    def add_disk(self, epoch: int, payload: Buffer) -> DiskWrites:
        """Take a DISK payload. Returns what is to be written now: the writes of a first copy, which no epoch holds."""
        disk, writes = decode_writes(payload, self._disks)
        if epoch == 0 and not self.whole:
            return [(disk, write) for write in writes]
        staged = self._running(epoch, len(payload) + WRITE_COST * len(writes))
        staged.writes.extend((disk, write) for write in writes)
        staged.data_bytes += sum(len(write.data) for write in writes)
        return []

    def _running(self, epoch: int, size: int) -> _Staged:
        if epoch != self.epoch + 1:
            raise WireError(f"a piece of epoch {epoch} after the whole epoch {self.epoch}")
        if self._staged is None:
            self._staged = _Staged(epoch)
        self._staged.held += size + PIECE_COST
        if self._staged.held + sum(s.held for s in self._unapplied) > self._limit:
            raise WireError(f"epoch {epoch} exceeds the {self._limit} bytes that may wait aside")
        return self._staged

    def commit(self, epoch: int, commit: Commit) -> DiskWrites:
        """The epoch has been sent: it counts from here on, if it is whole. Returns what it wrote to disks.

        Raises WireError if it is not whole.
        """
        staged = self._running(epoch, 0)
        arrived = staged.page_count, staged.device_bytes, len(staged.writes), staged.data_bytes
        if arrived != (commit.pages, commit.device_bytes, commit.disk_writes, commit.disk_bytes) or not staged.device:
            raise WireError(f"epoch {epoch} is not whole: {staged.page_count} of {commit.pages} pages, "
                            f"{staged.device_bytes} of {commit.device_bytes} bytes of device state, "
                            f"{len(staged.writes)} of {commit.disk_writes} writes to disks with {staged.data_bytes} "
                            f"of {commit.disk_bytes} bytes")
        self._staged = None
        self._unapplied.append(staged)
        self.epoch, self.consumed, self.device = epoch, commit.consumed, staged.device
        writes, staged.writes = staged.writes, []
        return writes

    async def apply(self) -> None:
        """Write every whole epoch to RAM, oldest first. A takeover calls it before it touches the replica.

        Cancelled, it leaves the rest to the next call.
        """
        async with self._applying:
            while self._unapplied:
                await self._write(self._unapplied[0])

    async def _write(self, staged: _Staged) -> None:
        while staged.pages:
            numbers, data = staged.pages[0]
            for at in range(0, len(numbers), PIECE_PAGES):
                piece = numbers[at:at + PIECE_PAGES]
                self._ram[piece] = data if isinstance(data, int) else data[at:at + PIECE_PAGES]
                await asyncio.sleep(0)
                if not self._unapplied or self._unapplied[0] is not staged:
                    return  # a new first copy began: this epoch counts no more
            staged.pages.pop(0)
        self._unapplied.popleft()

    def device_state(self) -> bytes:
        """The device state of the last whole epoch. Raises VmError when no epoch is whole."""
        if not self.whole:
            raise VmError("no whole epoch has arrived", "wait for the first copy to end")
        return b"".join(self.device)
