# SPDX-License-Identifier: GPL-2.0-or-later
"""What of a disk differs between two hosts, found out by checksums: the question, the answer, and who answers it.

Payloads (this format is Holdfast's own), little-endian:

    question  number u64 | disk u32 | grain u32 | ranges x (offset u64 | length u64)
    answer    number u64 | a bit for each block: reads as zeros | 16 for each other block: XXH3-128

Each range is cut into blocks of `grain` bytes from its start on; the last one may be shorter. A question without ranges
has an empty answer: it says that all that was sent before is in the images, flushed when the grain is 0.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

from vmlink.disk.record import SECTOR
from vmlink.disk.store import Store
from vmlink.wire import Buffer, WireError

COARSE = 64 << 10
"""Bytes of a block in the first question."""
FINE = 4096
"""Bytes of a block in a question about blocks that differ."""
MOST_BYTES = 16 << 20
"""Bytes of a disk in one question."""
_HEAD = struct.Struct("<QII")
_NUMBER = struct.Struct("<Q")
_HASH = 16

Ranges = Sequence[tuple[int, int]]
"""Offsets and lengths, bytes."""
Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Hashes = np.ndarray[tuple[int, int], np.dtype[np.uint64]]
"""Shape (n, 2)."""


@dataclass(frozen=True)
class Question:
    """See the module."""

    number: int
    disk: int
    grain: int
    ranges: Ranges

    @property
    def blocks(self) -> int:
        return sum(-(-length // self.grain) for _, length in self.ranges)

    def encode(self) -> bytes:
        table = np.array(self.ranges, "<u8").reshape(-1, 2)
        return _HEAD.pack(self.number, self.disk, self.grain) + table.tobytes()

    @classmethod
    def decode(cls, payload: Buffer, sizes: Sequence[int]) -> Question:
        """Raises WireError for what is no question about a part of one of these disks."""
        if len(payload) < _HEAD.size or (len(payload) - _HEAD.size) % 16:
            raise WireError(f"a question about a disk in {len(payload)} bytes")
        number, disk, grain = _HEAD.unpack_from(payload)
        table = np.frombuffer(payload, "<u8", offset=_HEAD.size).reshape(-1, 2)
        if disk >= len(sizes):
            raise WireError(f"a question about disk number {disk} of a VM that has {len(sizes)}")
        if len(table) and grain not in (COARSE, FINE):
            raise WireError(f"a question about blocks of {grain} bytes")
        size = sizes[disk]
        if ((table > size).any() or (table.sum(axis=1) > size).any() or (table % SECTOR).any()
                or not table[:, 1].all() or int(table[:, 1].sum()) > MOST_BYTES):
            raise WireError("a question about more than there is of a disk, or may be asked at once")
        return cls(number, disk, grain, [(offset, length) for offset, length in table.tolist()])


@dataclass(frozen=True)
class Answer:
    """`zero`: by block; `hashes`: of all blocks, those of zero blocks have no meaning."""

    number: int
    zero: Flags
    hashes: Hashes

    def encode(self) -> bytes:
        return _NUMBER.pack(self.number) + np.packbits(self.zero).tobytes() + self.hashes[~self.zero].tobytes()

    @classmethod
    def decode(cls, payload: Buffer, questions: dict[int, Question]) -> Answer | None:
        """None for an answer to none of these questions, by number. Raises WireError for what cannot be one to its own.
        """
        if len(payload) < _NUMBER.size:
            raise WireError(f"an answer in {len(payload)} bytes")
        [number] = _NUMBER.unpack_from(payload)
        question = questions.get(number)
        if question is None:
            return None
        blocks = question.blocks
        bits = math.ceil(blocks / 8)
        zero = np.unpackbits(np.frombuffer(payload, np.uint8, min(bits, len(payload) - _NUMBER.size), _NUMBER.size),
                             count=blocks).astype(np.bool_)
        if len(payload) != _NUMBER.size + bits + _HASH * int(blocks - zero.sum()):
            raise WireError(f"an answer about {blocks} blocks in {len(payload)} bytes")
        hashes = np.zeros((blocks, 2), np.uint64)
        hashes[~zero] = np.frombuffer(payload, "<u8", offset=_NUMBER.size + bits).reshape(-1, 2)
        return cls(number, zero, hashes)


def hashed(data: Sequence[memoryview], grain: int) -> Hashes:
    """Checksums of the blocks of these ranges' content."""
    digests = [xxhash.xxh3_128_digest(part[at:at + grain]) for part in data for at in range(0, len(part), grain)]
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def answer(stores: Sequence[Store], question: Question) -> Answer:
    """Blocks while the disk is read; holes are not. Raises VmError."""
    if not question.ranges:
        return Answer(question.number, np.zeros(0, np.bool_), np.zeros((0, 2), np.uint64))
    store, grain = stores[question.disk], question.grain
    zero = np.ones(question.blocks, np.bool_)
    wanted: list[tuple[int, memoryview]] = []
    first = 0
    for offset, length in question.ranges:
        blocks = -(-length // grain)
        # To look up what is small takes longer than to read it.
        for at, size in store.extents(offset, length).data() if length > COARSE else [(offset, length)]:
            zero[first + (at - offset) // grain:first + -(-(at + size - offset) // grain)] = False
        for begin, end in runs(~zero[first:first + blocks]):
            wanted.append((offset + begin * grain, memoryview(bytearray(min(end * grain, length) - begin * grain))))
        first += blocks
    store.read_into(wanted)
    hashes = np.zeros((question.blocks, 2), np.uint64)
    hashes[~zero] = hashed([view for _, view in wanted], grain)
    return Answer(question.number, zero, hashes)


def runs(flags: Flags) -> list[tuple[int, int]]:
    """First and behind last of each run of set flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return [(begin, end) for begin, end in edges.reshape(-1, 2).tolist()]
