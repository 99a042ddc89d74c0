# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes arrive as they were made, nothing but WireError comes out of what is broken, reads see what was written."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlink.disk.record import (
    MOST_WRITES,
    PIECE,
    SECTOR,
    WRITE_COST,
    Kind,
    Overlay,
    Record,
    Write,
    decode_writes,
    encode_writes,
)
from vmlink.wire import MAX_PAYLOAD, WireError

SECTORS = 64
SIZE = SECTORS * SECTOR
relaxed = settings(deadline=None, max_examples=200)


@st.composite
def one_write(draw: st.DrawFn) -> Write:
    kind = draw(st.sampled_from(Kind))
    first = draw(st.integers(0, SECTORS - 1))
    length = draw(st.integers(1, SECTORS - first)) * SECTOR
    data = bytes([draw(st.integers(1, 255))]) * length if kind is Kind.WRITE else b""
    return Write(kind, first * SECTOR, length, data)


def write_to(image: bytearray, write: Write) -> None:
    image[write.offset:write.offset + write.length] = write.data if write.kind is Kind.WRITE else bytes(write.length)


def sent(disk: int, writes: list[Write], sizes: list[int]) -> tuple[list[Write], int]:
    """What arrives of these writes, and the number of entries that were announced."""
    arrived, entries = [], 0
    for count, parts in encode_writes(disk, writes):
        payload = b"".join(parts)
        assert len(payload) <= MAX_PAYLOAD
        index, some = decode_writes(payload, sizes)
        assert index == disk and len(some) == count
        arrived += some
        entries += count
    return arrived, entries


# --- on the wire ---

@relaxed
@given(st.lists(one_write(), max_size=30), st.integers(0, 3))
def test_writes_arrive_as_they_were_made(writes: list[Write], disk: int) -> None:
    arrived, entries = sent(disk, writes, [SIZE] * 4)
    assert entries == len(writes)
    assert [(w.kind, w.offset, w.length, bytes(w.data)) for w in arrived] == [tuple(w) for w in writes]


def test_a_long_write_arrives_in_pieces() -> None:
    size = 8 << 40
    data = bytes(range(256)) * (5 * PIECE // 512)
    writes = [Write(Kind.WRITE, SECTOR, len(data), data), Write(Kind.ZERO, 0, 6 << 30), Write(Kind.TRIM, 0, SECTOR)]
    arrived, entries = sent(0, writes, [size])
    assert entries == len(arrived) == 3 + 2 + 1
    assert b"".join(write.data for write in arrived) == data
    assert sum(write.length for write in arrived if write.kind is Kind.ZERO) == 6 << 30
    at = 0
    for write in arrived[3:5]:
        assert write.offset == at
        at += write.length


def test_many_writes_without_data_need_more_than_one_message() -> None:
    writes = [Write(Kind.ZERO, 0, SECTOR)] * (MOST_WRITES + 1)
    assert [count for count, _ in encode_writes(0, writes)] == [MOST_WRITES, 1]


def payload_of(entries: list[tuple[int, int, int]], data: int = 0, disk: int = 0, count: int | None = None) -> bytes:
    """Entries of (offset, length, kind), however wrong."""
    table = b"".join(struct.pack("<QIB3x", *entry) for entry in entries)
    return struct.pack("<II", disk, len(entries) if count is None else count) + table + bytes(data)


@pytest.mark.parametrize(("payload", "words"), [
    (b"", "DISK payload of 0 bytes"),
    (payload_of([]), "0 writes"),
    (payload_of([(0, SECTOR, 2)], disk=1), "disk number 1"),
    (payload_of([(0, SECTOR, 2)], count=2), "2 writes"),
    (payload_of([(0, SECTOR, 2)], count=(1 << 32) - 1), "writes in"),
    (payload_of([(0, SECTOR, 0)]), "unknown kind"),
    (payload_of([(0, SECTOR, 4)]), "unknown kind"),
    (payload_of([(0, 0, 2)]), "whole sectors"),
    (payload_of([(1, SECTOR, 2)]), "whole sectors"),
    (payload_of([(0, SECTOR + 1, 2)]), "whole sectors"),
    (payload_of([(SIZE, SECTOR, 2)]), "beyond the end"),
    (payload_of([(SIZE - SECTOR, 2 * SECTOR, 2)]), "beyond the end"),
    (payload_of([((1 << 64) - SECTOR, 2 * SECTOR, 2)]), "beyond the end"),
    (payload_of([(0, SECTOR, 1)]), "not as long"),
    (payload_of([(0, SECTOR, 1)], data=SECTOR - 1), "not as long"),
    (payload_of([(0, SECTOR, 2)], data=SECTOR), "not as long"),
    (payload_of([(0, SECTOR, 1)], data=SECTOR + 1), "not as long"),
])
def test_a_payload_that_is_no_list_of_writes_is_refused(payload: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_writes(payload, [SIZE])


@relaxed
@given(st.binary(max_size=400))
def test_garbage_is_refused(payload: bytes) -> None:
    try:
        disk, writes = decode_writes(payload, [SIZE, SIZE])
    except WireError:
        return
    assert disk < 2 and all(write.offset + write.length <= SIZE and write.length for write in writes)


def test_a_record_knows_its_size() -> None:
    record = Record()
    record.add(Write(Kind.WRITE, 0, SECTOR, bytes(SECTOR)))
    record.add(Write(Kind.ZERO, 0, SIZE))
    assert (record.size, record.data_bytes) == (SECTOR + 2 * WRITE_COST, SECTOR)


# --- laid over a source ---

@relaxed
@given(st.lists(st.tuples(one_write(), st.booleans()), max_size=25), st.integers(0, 8), st.integers(0, SECTORS - 1),
       st.integers(1, SECTORS))
def test_a_read_sees_what_was_written(history: list[tuple[Write, bool]], applied: int, first: int, count: int) -> None:
    """The source has the first `applied` epochs; the overlay has all, and may forget those."""
    source, whole, overlay, epoch = bytearray(b"s" * SIZE), bytearray(b"s" * SIZE), Overlay(), 1
    for write, ends in history:
        overlay.add(write, epoch)
        write_to(whole, write)
        if epoch <= applied:
            write_to(source, write)
        epoch += ends
    offset, length = first * SECTOR, min(count, SECTORS - first) * SECTOR
    for _ in range(2):  # before and after it forgets
        read = bytearray(source[offset:offset + length])
        overlay.lay(offset, read)
        assert read == whole[offset:offset + length]
        if overlay.covers(offset, length):
            blank = bytearray(length)
            overlay.lay(offset, blank)
            assert blank == read
        overlay.forget(applied)
    overlay.forget(epoch)
    assert overlay.size == 0


@relaxed
@given(st.lists(one_write(), max_size=25))
def test_an_overlay_counts_what_it_keeps(writes: list[Write]) -> None:
    overlay, written = Overlay(), set()
    for write in writes:
        overlay.add(write, 1)
        written |= set(range(write.offset // SECTOR, (write.offset + write.length) // SECTOR))
        data = sum(len(piece[2]) for piece in overlay._pieces if piece[2] is not None)
        assert overlay.size == data + WRITE_COST * len(overlay._pieces)
    for sector in range(SECTORS):
        assert overlay.covers(sector * SECTOR, SECTOR) == (sector in written)


def test_zeros_longer_than_any_buffer() -> None:
    overlay = Overlay()
    overlay.add(Write(Kind.TRIM, 0, 1 << 40), 1)
    read = bytearray(b"x" * (1 << 20))
    overlay.lay(SECTOR, read)
    assert not any(read)
    assert overlay.covers(1 << 30, 1 << 20) and not overlay.covers((1 << 40) - SECTOR, 2 * SECTOR)
