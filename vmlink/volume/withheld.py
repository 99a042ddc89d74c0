# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM wrote to its volumes and they do not have yet: kept in order, due epoch by epoch. Pure.

Invariant (nothing uncommitted on a volume): a batch is due only when its epoch is committed, or when this host
rightfully runs the VM alone.

Invariant (order): a batch holds what was written between two flushes of the VM, and is due only after all before it; so
whenever both hosts die, the volumes are what a machine that lost power leaves behind.

Invariant (reads): volumes with this laid over them are what the VM wrote.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from vmlink.disk.record import WRITE_COST, DiskWrites, Overlay, Record, Write

NOT_CUT = 1 << 62
"""Stands for the epoch that a batch will belong to."""


@dataclass
class Batch:
    """Writes between two flushes, by volume and in their order. `again`: of an epoch that was committed on a host that
    is gone: the volumes may have some of them, and later ones."""

    serial: int
    epoch: int = NOT_CUT
    writes: DiskWrites = field(default_factory=list)
    size: int = 0
    again: bool = False

    def merged(self, volumes: int) -> list[list[Write]]:
        """What it comes to on each volume: writes that do not overlap."""
        overlays = [Overlay() for _ in range(volumes)]
        for volume, write in self.writes:
            overlays[volume].add(write, 0)
        return [list(overlay.writes()) for overlay in overlays]


class Withheld:
    """See the module. `size`: bytes that it takes; `epoch`: the last one that was cut."""

    def __init__(self, volumes: int) -> None:
        self._batches: deque[Batch] = deque()
        self._overlays = [Overlay() for _ in range(volumes)]
        self._records = [Record() for _ in range(volumes)]
        self._serial = 0
        self._allowed = 0
        self.freely = False
        """Is everything due at once?"""
        self.size = 0
        self.epoch = 0

    # --- what the VM does ---

    def write(self, volume: int, write: Write) -> None:
        """A write of the VM; its data must not change any more."""
        if not self._batches or (self._batches[-1].serial, self._batches[-1].epoch) != (self._serial, NOT_CUT):
            self._serial += 1
            self._batches.append(Batch(self._serial))
        batch, cost = self._batches[-1], len(write.data) + WRITE_COST
        batch.writes.append((volume, write))
        batch.size += cost
        self.size += cost
        self._overlays[volume].add(write, batch.serial)
        if not self.freely:
            self._records[volume].add(write)

    def flush(self) -> int:
        """A flush of the VM: what follows is in another batch. Returns the last serial that it is about."""
        if self._batches and self._batches[-1].serial == self._serial:
            self._serial += 1
        return self._serial

    def overlay(self, volume: int) -> Overlay:
        """What is laid over this volume."""
        return self._overlays[volume]

    # --- epochs ---

    def begin(self) -> None:
        """Epochs 1, 2, ... begin: nothing is due any more before its epoch is committed. While the VM is paused."""
        self.freely = False
        self._allowed = self.epoch = 0
        for batch in self._batches:
            batch.epoch = 0
        self._records = [Record() for _ in self._overlays]

    def cut(self, epoch: int) -> list[Record]:
        """What was written in the epoch that ends now, by volume. While the VM is paused."""
        self.epoch = epoch
        for batch in reversed(self._batches):
            if batch.epoch != NOT_CUT:
                break
            batch.epoch = epoch
        records, self._records = self._records, [Record() for _ in self._overlays]
        return records

    def allow(self, epoch: int) -> None:
        """Epochs up to this one are committed."""
        self._allowed = max(self._allowed, epoch)

    def allow_all(self) -> None:
        """This host runs the VM alone."""
        self.freely = True
        self._records = [Record() for _ in self._overlays]

    def redo(self, writes: DiskWrites) -> None:
        """Take over what was committed elsewhere and may not be on the volumes, before the VM runs here. It is due once
        this host may write."""
        if not writes:
            return
        self._serial += 1
        batch = Batch(self._serial, 1, writes, sum(len(write.data) + WRITE_COST for _, write in writes), again=True)
        for volume, write in writes:
            self._overlays[volume].add(write, batch.serial)
        self._batches.append(batch)
        self.size += batch.size

    # --- what the volumes get ---

    def due(self) -> Batch | None:
        """The next batch to be written; nothing is added to it any more. None when nothing is due."""
        if not self._batches:
            return None
        batch = self._batches[0]
        if not self.freely and batch.epoch > self._allowed:
            return None
        self.flush()
        return batch

    def done(self, batch: Batch) -> None:
        """The volumes have the batch that was due last, flushed."""
        assert self._batches and self._batches[0] is batch
        self._batches.popleft()
        self.size -= batch.size
        for overlay in self._overlays:
            overlay.forget(batch.serial)

    def has(self, serial: int) -> bool:
        """Do the volumes have everything up to this serial?"""
        return not self._batches or self._batches[0].serial > serial

    @property
    def ended(self) -> int:
        """Bytes that it takes of epochs that have ended; while nothing is written freely."""
        return self.size - sum(record.size for record in self._records)

    @property
    def stored(self) -> int:
        """The last epoch that was cut of which the volumes have everything, and of all before it."""
        return min(self.epoch, self._batches[0].epoch - 1) if self._batches else self.epoch


class Pending:
    """What a backup keeps of epochs that are committed, until the volumes have them. `limit`: bytes, which no primary
    that keeps to its own limit exceeds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._epochs: deque[tuple[int, int, Sequence[tuple[int, Write]]]] = deque()
        self.size = 0

    def clear(self) -> None:
        """A new copy begins."""
        self._epochs.clear()
        self.size = 0

    def add(self, epoch: int, writes: DiskWrites, stored: int) -> bool:
        """A whole epoch; the volumes have all up to `stored`. Returns whether the limit is kept."""
        while self._epochs and self._epochs[0][0] <= stored:
            self.size -= self._epochs.popleft()[1]
        if writes:
            size = sum(len(write.data) + WRITE_COST for _, write in writes)
            self._epochs.append((epoch, size, writes))
            self.size += size
        return self.size <= self.limit

    def take(self) -> DiskWrites:
        """All of it, in its order: of epochs that the volumes may have in part, or whole."""
        writes = [write for _, _, some in self._epochs for write in some]
        self.clear()
        return writes
