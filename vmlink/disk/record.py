# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM wrote to its disks: kept per epoch, sent to the other host, laid over what a copy does not have yet.

Everything here is pure. Offsets and lengths are bytes and whole sectors.

A DISK payload (this format is Holdfast's own) is one disk's writes, in their order:

    disk u32 | writes u32 | writes x (offset u64 | length u32 | kind u8 | 0 u24) | data of the WRITEs, joined

all little-endian. ZERO and TRIM have no data.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from vmlink.wire import Buffer, WireError

SECTOR = 512
"""Bytes; the unit of every request, and of the size of a disk."""
PIECE = 1 << 20
"""Bytes of data in one DISK message, small enough that a heartbeat never waits long behind one."""
WRITE_COST = 128
"""Bytes that a write costs beyond its data; without it a stream of writes without data would grow without bound."""
MOST_WRITES = 1 << 14
"""Writes in one DISK message."""

_HEAD = struct.Struct("<II")
_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u4"), ("kind", "u1"), ("zero", "u1", 3)])
_LONGEST = (1 << 32) - SECTOR
_ZEROS = bytes(64 << 10)


class Kind(IntEnum):
    """What a write does to its part of the disk."""

    WRITE = 1  # puts data there
    ZERO = 2  # fills it with zeros
    TRIM = 3  # gives it up: it reads as zeros here and there


class Write(NamedTuple):
    """One change of a disk: `length` bytes from `offset` on. `data`: of a WRITE, its bytes; else empty."""

    kind: Kind
    offset: int
    length: int
    data: Buffer = b""


DiskWrites = list[tuple[int, Write]]
"""The writes of a VM to its disks, in their order: disk index and write."""


class Record:
    """The writes of one disk in one epoch, in their order. `size`: bytes that it takes."""

    __slots__ = ("size", "writes")

    def __init__(self) -> None:
        self.writes: list[Write] = []
        self.size = 0

    def add(self, write: Write) -> None:
        self.writes.append(write)
        self.size += len(write.data) + WRITE_COST

    @property
    def data_bytes(self) -> int:
        """Bytes of data in it: what `wire.Commit` counts."""
        return self.size - WRITE_COST * len(self.writes)


def encode_writes(disk: int, writes: Sequence[Write]) -> Iterator[tuple[int, tuple[Buffer, ...]]]:
    """The writes of the disk of this index as payloads of about PIECE bytes: each with the number of its entries.

    A WRITE longer than PIECE is cut, so there may be more entries than writes. Small data is joined: one copy.
    """
    batch: list[Write] = []
    size = 0
    for write in _cut(writes):
        if batch and (size + len(write.data) > PIECE or len(batch) == MOST_WRITES):
            yield len(batch), _payload(disk, batch)
            batch, size = [], 0
        batch.append(write)
        size += len(write.data)
    if batch:
        yield len(batch), _payload(disk, batch)


def _cut(writes: Iterable[Write]) -> Iterator[Write]:
    for write in writes:
        step = PIECE if write.kind is Kind.WRITE else _LONGEST
        if write.length <= step:
            yield write
            continue
        data = memoryview(write.data)
        for at in range(0, write.length, step):
            length = min(step, write.length - at)
            yield Write(write.kind, write.offset + at, length, data[at:at + length])


def _payload(disk: int, batch: list[Write]) -> tuple[Buffer, ...]:
    table = np.zeros(len(batch), _ENTRY)
    table["offset"] = [write.offset for write in batch]
    table["length"] = [write.length for write in batch]
    table["kind"] = [write.kind for write in batch]
    head = _HEAD.pack(disk, len(batch)) + table.tobytes()
    parts = [write.data for write in batch if write.data]
    if not parts:
        return (head,)
    return head, parts[0] if len(parts) == 1 else b"".join(parts)


def decode_writes(payload: Buffer, sizes: Sequence[int]) -> tuple[int, list[Write]]:
    """Disk index and writes of a DISK payload; their data are views of it. `sizes`: bytes of each disk.

    Raises WireError for anything that is not exactly a payload of writes within one of these disks.
    """
    if len(payload) < _HEAD.size:
        raise WireError(f"a DISK payload of {len(payload)} bytes")
    disk, count = _HEAD.unpack_from(payload)
    if disk >= len(sizes):
        raise WireError(f"writes to disk number {disk} of a VM that has {len(sizes)}")
    data_at = _HEAD.size + count * _ENTRY.itemsize
    if not 0 < count <= MOST_WRITES or data_at > len(payload):
        raise WireError(f"{count} writes in {len(payload)} bytes")
    table = np.frombuffer(payload, _ENTRY, count, _HEAD.size)
    _check(table, sizes[disk], len(payload) - data_at)
    view, at = memoryview(payload), data_at
    writes = []
    for offset, length, kind in zip(table["offset"].tolist(), table["length"].tolist(), table["kind"].tolist(),
                                    strict=True):
        if kind == Kind.WRITE:
            writes.append(Write(Kind.WRITE, offset, length, view[at:at + length]))
            at += length
        else:
            writes.append(Write(Kind(kind), offset, length))
    return disk, writes


def _check(table: np.ndarray[tuple[int], np.dtype[np.void]], size: int, data: int) -> None:
    offsets, lengths, kinds = table["offset"], table["length"].astype(np.uint64), table["kind"]
    if ((kinds < Kind.WRITE) | (kinds > Kind.TRIM)).any() or table["zero"].any():
        raise WireError("a write of an unknown kind")
    if (lengths == 0).any() or ((offsets | lengths) % SECTOR).any():
        raise WireError("a write that is not of whole sectors")
    if (offsets > size).any() or (offsets + lengths > size).any():  # the sum of two that are in range is exact
        raise WireError("a write beyond the end of its disk")
    if int(lengths[kinds == Kind.WRITE].sum()) != data:
        raise WireError("the data of the writes are not as long as announced")


class Overlay:
    """What was written and is not yet in a source: reads of the source see it through `lay`.

    Kept as pieces that do not overlap, the newest data of each place, marked with the epoch that wrote it. Data
    are the buffers of the writes, not copies.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: list[tuple[int, int, Buffer | None]] = []  # end, epoch, data; None: zeros
        self.size = 0
        """Bytes that it takes."""

    def add(self, write: Write, epoch: int) -> None:
        """Lay a write over all that came before. Epochs do not fall from one to the next."""
        start, end = write.offset, write.offset + write.length
        first, last = self._touched(start, end)
        starts: list[int] = []
        pieces: list[tuple[int, int, Buffer | None]] = []
        if first < last:
            self._keep(first, self._starts[first], start, starts, pieces)
        starts.append(start)
        pieces.append((end, epoch, write.data if write.kind is Kind.WRITE else None))
        if first < last:
            self._keep(last - 1, end, self._pieces[last - 1][0], starts, pieces)
        self.size += sum(map(_cost, starts, pieces))
        self.size -= sum(map(_cost, self._starts[first:last], self._pieces[first:last]))
        self._starts[first:last], self._pieces[first:last] = starts, pieces

    def _keep(self, index: int, start: int, end: int, starts: list[int],
              pieces: list[tuple[int, int, Buffer | None]]) -> None:
        """What is left between `start` and `end` of the piece with this index, if anything."""
        if start < end:
            _, epoch, data = self._pieces[index]
            at = self._starts[index]
            starts.append(start)
            pieces.append((end, epoch, None if data is None else memoryview(data)[start - at:end - at]))

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """The pieces, from and up to, that have a byte in this range."""
        first = bisect.bisect_right(self._starts, start)
        if first and self._pieces[first - 1][0] > start:
            first -= 1
        return first, bisect.bisect_left(self._starts, end, first)

    def forget(self, epoch: int) -> None:
        """The source has everything up to this epoch."""
        kept = [index for index, piece in enumerate(self._pieces) if piece[1] > epoch]
        self._starts = [self._starts[index] for index in kept]
        self._pieces = [self._pieces[index] for index in kept]
        self.size = sum(map(_cost, self._starts, self._pieces))

    def writes(self) -> Iterator[Write]:
        """All that it has, as writes that do not overlap, in ascending order; what reads as zeros as ZERO."""
        for start, (end, _, data) in zip(self._starts, self._pieces, strict=True):
            if data is None:
                yield Write(Kind.ZERO, start, end - start)
            else:
                yield Write(Kind.WRITE, start, end - start, data)

    def covers(self, offset: int, length: int) -> bool:
        """Does it have the whole range, so that the source need not be asked?"""
        first, last = self._touched(offset, offset + length)
        for index in range(first, last):
            if self._starts[index] > offset:
                return False
            offset, length = self._pieces[index][0], offset + length - self._pieces[index][0]
        return length <= 0

    def pieces(self, offset: int, length: int) -> list[tuple[int, int, Buffer | None]]:
        """What it has of the range, in ascending order: start, end, data; None: zeros."""
        found: list[tuple[int, int, Buffer | None]] = []
        first, last = self._touched(offset, offset + length)
        for index in range(first, last):
            start, (end, _, data) = self._starts[index], self._pieces[index]
            low, high = max(start, offset), min(end, offset + length)
            found.append((low, high, None if data is None else memoryview(data)[low - start:high - start]))
        return found

    def lay(self, offset: int, into: bytearray | memoryview) -> None:
        """Write what it has over `into`, which is the source's content from `offset` on."""
        lay(self.pieces(offset, len(into)), offset, into)


def lay(pieces: Iterable[tuple[int, int, Buffer | None]], offset: int, into: bytearray | memoryview) -> None:
    """Write pieces (see `Overlay.pieces`) over `into`, which is a disk's content from `offset` on."""
    view = memoryview(into)
    for start, end, data in pieces:
        if data is not None:
            view[start - offset:end - offset] = data
            continue
        for at in range(start, end, len(_ZEROS)):
            length = min(len(_ZEROS), end - at)
            view[at - offset:at - offset + length] = _ZEROS[:length]


def _cost(start: int, piece: tuple[int, int, Buffer | None]) -> int:
    return WRITE_COST + (piece[0] - start if piece[2] is not None else 0)
