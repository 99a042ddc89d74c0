# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks of a disk were written since a moment, in memory that does not grow with the disk.

One byte per block; the block grows with the disk, so that there are at most MAX_BLOCKS of them.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import xxhash

from vmlink.errors import VmError

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Block numbers, offsets or lengths: int64, one dimension."""

MAX_BLOCKS = 1 << 20
SMALLEST = 4096
"""Bytes of a block of a disk of up to 4 GiB; a larger disk has larger ones."""
_FEW = 16
"""Blocks up to which a write is marked together with others; longer ones are marked one by one."""


def block_size(size: int) -> int:
    """Bytes of a block, a power of two, for a disk of `size` bytes."""
    block = SMALLEST
    while block * MAX_BLOCKS < size:
        block *= 2
    return block


class DirtyBlocks:
    """The blocks of a disk of `size` bytes that were marked and not taken yet. Not for several threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.block = block_size(size)
        self._shift = self.block.bit_length() - 1
        self._marks = np.zeros(math.ceil(size / self.block), np.bool_)

    def mark(self, offset: int, length: int) -> None:
        """One write, in bytes; what lies beyond the disk's end is no block."""
        if length > 0:
            self._marks[offset >> self._shift:((offset + length - 1) >> self._shift) + 1] = True

    def mark_all(self, offsets: Numbers, lengths: Numbers) -> None:
        """Many writes, in bytes."""
        offsets, lengths = offsets[lengths > 0], lengths[lengths > 0]
        first = offsets >> self._shift
        count = ((offsets + lengths - 1) >> self._shift) - first + 1
        for at in np.flatnonzero(count > _FEW):
            self._marks[first[at]:first[at] + count[at]] = True
        few = count <= _FEW
        first, count = first[few], count[few]
        for beyond in range(int(count.max(initial=0))):
            within = first[count > beyond] + beyond
            self._marks[within[within < len(self._marks)]] = True

    def add(self, numbers: Numbers) -> None:
        """Mark these blocks, as `take` gave them."""
        self._marks[numbers] = True

    def take(self) -> Numbers:
        """The marked blocks in ascending order; none is marked afterwards."""
        numbers = np.flatnonzero(self._marks)
        self._marks[:] = False
        return numbers

    def grown(self, size: int) -> DirtyBlocks:
        """The same marks for a disk that has become `size` bytes long, and all that it has gained."""
        larger = DirtyBlocks(size)
        larger.mark_all(*self.ranges(np.flatnonzero(self._marks)))
        larger.mark(self.size, size - self.size)
        return larger

    @property
    def marked_bytes(self) -> int:
        """Bytes in marked blocks, at most."""
        return int(np.count_nonzero(self._marks)) * self.block

    def ranges(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Blocks in ascending order as offsets and lengths in bytes of what is contiguous, cut at the disk's end."""
        if not len(numbers):
            return numbers, numbers
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        first = numbers[np.concatenate(([0], breaks))]
        last = numbers[np.concatenate((breaks - 1, [len(numbers) - 1]))]
        offsets = first << self._shift
        return offsets, np.minimum((last + 1) << self._shift, self.size) - offsets

    def encode(self) -> bytes:
        """The marks for a file: a digest and a bit per block."""
        bits = np.packbits(self._marks).tobytes()
        return xxhash.xxh3_64_digest(self._seed(bits)) + bits

    @classmethod
    def decode(cls, size: int, content: bytes) -> DirtyBlocks:
        """What `encode` made of a disk of `size` bytes. Raises VmError for anything else."""
        found = cls(size)
        digest, bits = content[:8], content[8:]
        if len(bits) != math.ceil(len(found._marks) / 8) or digest != xxhash.xxh3_64_digest(found._seed(bits)):
            raise VmError("the list of written blocks is damaged", "the disk is compared by checksums instead")
        found._marks = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(found._marks)).astype(np.bool_)
        return found

    def _seed(self, bits: bytes) -> bytes:
        return self.size.to_bytes(8, "little") + bits


@dataclass(frozen=True)
class _Epoch:
    number: int
    offsets: Numbers
    lengths: Numbers


class Unconfirmed:
    """Where the epochs wrote that the backup does not have on disk yet: what must move again when it is lost.

    Bounded by what the backup may leave unapplied: it acknowledges no more.
    """

    def __init__(self) -> None:
        self._epochs: deque[_Epoch] = deque()
        self.since = 0
        """What the backup has at least, whatever becomes of it: the last epoch that wrote and is on its disk, or 1. 0:
        nothing."""

    def __len__(self) -> int:
        return len(self._epochs)

    def begin(self) -> None:
        """Another replica, which has nothing yet."""
        self._epochs.clear()
        self.since = 0

    def note(self, epoch: int, offsets: Numbers, lengths: Numbers) -> None:
        """The writes of `epoch`, in bytes. Epochs come in ascending order; one without writes needs no note."""
        self._epochs.append(_Epoch(epoch, offsets, lengths))

    def confirm(self, epoch: int) -> None:
        """Up to `epoch` all is on the backup's disk."""
        if epoch:
            self.since = max(self.since, 1)
        while self._epochs and self._epochs[0].number <= epoch:
            self.since = self._epochs.popleft().number

    def spill(self, dirty: DirtyBlocks) -> None:
        """Mark what is not confirmed; from here on `dirty` counts from the epoch `since`."""
        for epoch in self._epochs:
            dirty.mark_all(epoch.offsets, epoch.lengths)
        self._epochs.clear()
