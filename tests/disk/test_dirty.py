# SPDX-License-Identifier: GPL-2.0-or-later
"""Which blocks were written: the bitmap against a set of block numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlink.disk.dirty import MAX_BLOCKS, SMALLEST, DirtyBlocks, Unconfirmed, block_size
from vmlink.errors import VmError

GIB = 1 << 30
SIZE = 100 * SMALLEST + 512

writes = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE)).map(
    lambda write: (write[0], min(write[1], SIZE - write[0]))), max_size=30)


def blocks_of(written: list[tuple[int, int]], block: int) -> list[int]:
    touched: set[int] = set()
    for offset, length in written:
        if length:
            touched.update(range(offset // block, (offset + length - 1) // block + 1))
    return sorted(touched)


def columns(written: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(written, np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@pytest.mark.parametrize("size", [1, 4096, 4 * GIB, 4 * GIB + 1, 8 * GIB, 1 << 40, 20 << 40, 8 << 60])
def test_a_block_grows_so_that_there_are_never_many(size: int) -> None:
    block = block_size(size)
    assert block & (block - 1) == 0
    assert size <= block * MAX_BLOCKS
    assert block == SMALLEST or size > block // 2 * MAX_BLOCKS


@given(writes)
def test_a_write_marks_the_blocks_that_it_touches(written: list[tuple[int, int]]) -> None:
    one_by_one, together = DirtyBlocks(SIZE), DirtyBlocks(SIZE)
    for offset, length in written:
        one_by_one.mark(offset, length)
    together.mark_all(*columns(written))
    expected = blocks_of(written, SMALLEST)
    assert together.marked_bytes == len(expected) * SMALLEST
    assert one_by_one.take().tolist() == together.take().tolist() == expected
    assert one_by_one.marked_bytes == 0 and together.take().tolist() == []


@given(writes)
def test_ranges_are_what_was_marked(written: list[tuple[int, int]]) -> None:
    dirty = DirtyBlocks(SIZE)
    dirty.mark_all(*columns(written))
    numbers = dirty.take()
    offsets, lengths = dirty.ranges(numbers)
    again = DirtyBlocks(SIZE)
    again.mark_all(offsets, lengths)
    assert again.take().tolist() == numbers.tolist()
    ends = offsets + lengths
    assert (offsets[1:] > ends[:-1]).all()  # contiguous ones are one
    assert (ends <= SIZE).all()


@given(writes)
def test_marks_survive_a_file(written: list[tuple[int, int]]) -> None:
    dirty = DirtyBlocks(SIZE)
    dirty.mark_all(*columns(written))
    assert DirtyBlocks.decode(SIZE, dirty.encode()).take().tolist() == dirty.take().tolist()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"\0", lambda _: b"",
                                    lambda content: content[:-1] + bytes([content[-1] ^ 1])])
def test_a_damaged_file_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    dirty = DirtyBlocks(SIZE)
    dirty.mark(0, 1)
    with pytest.raises(VmError, match="damaged"):
        DirtyBlocks.decode(SIZE, damage(dirty.encode()))


def test_the_marks_of_another_size_are_refused() -> None:
    with pytest.raises(VmError, match="damaged"):
        DirtyBlocks.decode(SIZE - 512, DirtyBlocks(SIZE).encode())


def test_memory_does_not_grow_with_the_disk() -> None:
    dirty = DirtyBlocks(8 << 40)
    dirty.mark(0, 8 << 40)
    assert len(dirty.take()) == MAX_BLOCKS


def test_everything() -> None:
    dirty = DirtyBlocks(SIZE)
    dirty.mark(0, SIZE)
    numbers = dirty.take()
    assert [values.tolist() for values in dirty.ranges(numbers)] == [[0], [SIZE]]
    dirty.add(numbers[3:5])
    assert dirty.take().tolist() == [3, 4]


@given(writes, st.integers(0, 12))
def test_what_the_backup_has_on_disk_need_not_move(written: list[tuple[int, int]], durable: int) -> None:
    """Three writes an epoch; all of the epochs after the last durable one are marked."""
    unconfirmed, dirty = Unconfirmed(), DirtyBlocks(SIZE)
    wrote = [epoch for epoch in range(1, 11) if written[3 * epoch - 3:3 * epoch]]
    for epoch in wrote:
        unconfirmed.note(epoch, *columns(written[3 * epoch - 3:3 * epoch]))
    unconfirmed.confirm(durable)
    unconfirmed.confirm(durable - 1 if durable else 0)  # an older word changes nothing
    assert unconfirmed.since == max([epoch for epoch in wrote if epoch <= durable], default=min(durable, 1))
    unconfirmed.spill(dirty)
    assert dirty.take().tolist() == blocks_of(written[3 * durable:], SMALLEST)
    assert len(unconfirmed) == 0
