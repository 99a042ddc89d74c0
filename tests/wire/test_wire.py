# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire format: what goes in comes out, and nothing but WireError comes out of what is broken."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlink.wire import (
    HEADER,
    MAGIC,
    MAX_FRAME,
    MAX_PAYLOAD,
    MAX_READ,
    PAGE,
    VERSION,
    Commit,
    DiskData,
    DiskRead,
    Header,
    Message,
    Type,
    VersionError,
    WireError,
    check_payload,
    decode_frames,
    decode_header,
    decode_numbers,
    decode_pages,
    decode_pieces,
    digest,
    encode_frames,
    encode_header,
    encode_numbers,
    encode_pages,
    vm_id,
)

relaxed = settings(deadline=None, max_examples=150)
u64 = st.integers(0, 2**64 - 1)
parts = st.lists(st.binary(max_size=300), max_size=5).map(tuple)
messages = st.builds(Message, st.sampled_from(Type), u64, u64, u64, parts)


def on_the_wire(message: Message, seq: int = 0) -> bytes:
    return b"".join((encode_header(message, seq, digest(message.payload)), *message.payload))


def header_of(*, magic: bytes = MAGIC, version: int = VERSION, kind: int = Type.PAGES, length: int = 0,
              reserved: int = 0, payload_digest: int = 0, own: int | None = None) -> bytes:
    """A header whose digest is right however wrong its fields are."""
    body = struct.pack("!4sHHQQQQIIQ", magic, version, kind, 0, 0, 0, 0, length, reserved, payload_digest)
    return body + (xxhash.xxh3_64_digest(body) if own is None else own.to_bytes(8, "big"))


# --- round trips --------------------------------------------------------------------------------------

@relaxed
@given(messages, u64)
def test_a_message_arrives_as_it_was_sent(message: Message, seq: int) -> None:
    raw = on_the_wire(message, seq)
    assert len(raw) == message.size
    header, payload = decode_header(memoryview(raw)[:HEADER.size]), raw[HEADER.size:]
    assert header == Header(message.type, message.vm, message.term, message.epoch, seq, len(payload),
                            digest(message.payload))
    assert payload == b"".join(message.payload)
    check_payload(header, memoryview(payload))


@relaxed
@given(st.lists(st.integers(0, 999), min_size=1, max_size=40))
def test_pages_arrive_as_they_were_sent(numbers: list[int]) -> None:
    sent = np.array(numbers, np.int64)
    data = np.random.default_rng(len(numbers)).integers(0, 256, (len(numbers), PAGE), np.uint8)
    got, pages = decode_pages(b"".join(encode_pages(sent, data)), 1000)
    assert (got == sent).all() and (pages == data).all()
    assert (decode_numbers(b"".join(encode_numbers(sent)), 1000) == sent).all()


@relaxed
@given(st.tuples(*[u64] * 6))
def test_a_commit_arrives_as_it_was_sent(counts: tuple[int, ...]) -> None:
    commit = Commit(*counts)
    assert Commit.decode(commit.encode()) == commit


@relaxed
@given(u64, st.integers(0, 2**32 - 1), st.binary(max_size=3000))
def test_a_disk_is_asked_and_answers(number: int, error: int, data: bytes) -> None:
    read = DiskRead(number, 1, 4096, 512)
    assert DiskRead.decode(read.encode(), [0, 8192]) == read
    answer = DiskData.decode(b"".join(DiskData(number, error, data).encode()))
    assert (answer.number, answer.error, bytes(answer.data)) == (number, error, data)


@pytest.mark.parametrize("read", [DiskRead(1, 1, 0, 512), DiskRead(1, 0, 0, 0), DiskRead(1, 0, 7680, 1024),
                                  DiskRead(1, 0, 2**64 - 512, 1024), DiskRead(1, 0, 0, MAX_READ + 512)])
def test_a_read_beyond_a_disk_is_refused(read: DiskRead) -> None:
    with pytest.raises(WireError, match="a read of"):
        DiskRead.decode(read.encode(), [8192])


@pytest.mark.parametrize("size", [0, 11, 12 + MAX_READ + 1])
def test_an_answer_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match="DISK_DATA"):
        DiskData.decode(bytes(size))
    with pytest.raises(WireError, match="DISK_READ"):
        DiskRead.decode(bytes(size), [1 << 40])


@relaxed
@given(st.lists(st.tuples(u64, st.binary(min_size=1, max_size=3000)), max_size=20))
def test_frames_arrive_as_they_were_sent(frames: list[tuple[int, bytes]]) -> None:
    assert decode_frames(encode_frames(frames)) == frames


def test_the_largest_of_everything_fits() -> None:
    assert decode_frames(encode_frames([(1, bytes(MAX_FRAME))])) == [(1, bytes(MAX_FRAME))]
    whole = Message(Type.DEVICE, payload=(bytes(MAX_PAYLOAD),))
    assert decode_header(on_the_wire(whole)[:HEADER.size]).length == MAX_PAYLOAD
    with pytest.raises(WireError, match="DEVICE of 4194305 bytes"):
        on_the_wire(Message(Type.DEVICE, payload=(bytes(MAX_PAYLOAD), b"x")))


def test_pages_are_not_copied() -> None:
    numbers, data = np.arange(3, dtype=np.int64), np.zeros((3, PAGE), np.uint8)
    parts = encode_pages(numbers, data)
    data[1, 7] = 9
    payload = bytearray(b"".join(parts))
    _, got = decode_pages(payload, 3)
    payload[24 + PAGE + 8] = 5
    assert (got[1, 7], got[1, 8]) == (9, 5)


def test_the_parts_of_a_digest_do_not_matter() -> None:
    assert digest((b"ab", b"c", b"")) == digest((b"abc",)) == xxhash.xxh3_64_intdigest(b"abc")
    assert vm_id("web1") == xxhash.xxh3_64_intdigest(b"web1") != vm_id("web2")
    assert decode_pieces(Message(Type.ACK)) == b"" and decode_pieces(Message(Type.ACK, payload=(b"x",))) == b"x"


def test_the_format_is_the_documented_one() -> None:
    """Two releases of the same wire version must understand each other: the bytes are pinned down."""
    message = Message(Type.COMMIT, 0x0102030405060708, 9, 10, (b"abc",))
    head = "48465354" "0001" "000e" "0102030405060708" "0000000000000009" "000000000000000a"
    head += "000000000000000b" "00000003" "00000000" + f"{xxhash.xxh3_64_intdigest(b'abc'):016x}"
    expected = bytes.fromhex(head)
    assert on_the_wire(message, 11) == expected + xxhash.xxh3_64_digest(expected) + b"abc"


# --- refusals -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("raw, why", [
    (header_of(magic=b"HTTP"), "not a Holdfast frame"),
    (header_of(own=1), "corrupt header"),
    (header_of(kind=99), "unknown message type 99"),
    (header_of(kind=0), "unknown message type 0"),
    (header_of(length=MAX_PAYLOAD + 1), "a payload of 4194305 bytes"),
    (header_of(length=2**32 - 1), "at most 4194304 are legal"),
    (header_of(reserved=1), "announced"),
    (header_of()[:-1], "a header of 63 bytes"),
    (header_of() + b"\0", "a header of 65 bytes"),
    (b"", "a header of 0 bytes"),
], ids=lambda value: value if isinstance(value, str) else "raw")
def test_a_wrong_header_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        decode_header(raw)


@pytest.mark.parametrize("version", [0, 2, 65535])
def test_another_version_is_named_whatever_its_digest(version: int) -> None:
    with pytest.raises(VersionError, match=f"wire version {version}, this host 1: run the same Holdfast"):
        decode_header(header_of(version=version, own=0))


@relaxed
@given(messages, st.data())
def test_any_flipped_bit_is_noticed(message: Message, data: st.DataObject) -> None:
    raw = bytearray(on_the_wire(message, 7))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        header = decode_header(raw[:HEADER.size])
        check_payload(header, raw[HEADER.size:])


def test_a_payload_of_another_length_is_refused() -> None:
    raw = on_the_wire(Message(Type.PAGES, payload=(b"abcd",)))
    header = decode_header(raw[:HEADER.size])
    for wrong in (b"", b"abc", b"abcde", b"abce"):
        with pytest.raises(WireError, match="corrupt PAGES payload"):
            check_payload(header, wrong)


@pytest.mark.parametrize("numbers", [[-1], [1000], [0, 2**62], [-(2**63)]])
def test_a_page_outside_the_ram_is_refused(numbers: list[int]) -> None:
    wrong = np.array(numbers, np.int64)
    with pytest.raises(WireError, match="outside the guest's RAM"):
        decode_numbers(b"".join(encode_numbers(wrong)), 1000)
    with pytest.raises(WireError, match="outside the guest's RAM"):
        decode_pages(b"".join(encode_pages(wrong, np.zeros((len(numbers), PAGE), np.uint8))), 1000)


@pytest.mark.parametrize("size", [0, 1, 8, PAGE, PAGE + 7, PAGE + 9])
def test_pages_of_a_wrong_size_are_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"a PAGES payload of {size} bytes"):
        decode_pages(bytes(size), 1000)


def test_frames_that_do_not_fit_are_refused() -> None:
    whole = encode_frames([(1, b"abc"), (2, b"d")])
    for end in range(1, len(whole)):
        if end != 15:  # where the first frame ends
            with pytest.raises(WireError, match="frame"):
                decode_frames(whole[:end])
    for length in (0, MAX_FRAME + 1, 2**32 - 1):
        with pytest.raises(WireError, match="longer than its payload"):
            decode_frames(struct.pack("!QI", 1, length) + bytes(200_000))


@pytest.mark.parametrize("size", [0, 23, 25])
def test_a_commit_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(WireError, match=f"a COMMIT payload of {size} bytes"):
        Commit.decode(bytes(size))


# --- fuzz: only WireError comes out -------------------------------------------------------------------

def only_wire_errors(call: object, *arguments: object) -> None:
    try:
        call(*arguments)  # type: ignore[operator]
    except WireError:
        pass


@settings(deadline=None, max_examples=400)
@given(st.one_of(st.binary(max_size=200), st.binary(min_size=64, max_size=64),
                 st.binary(min_size=60, max_size=60).map(lambda tail: MAGIC + tail),
                 st.binary(min_size=58, max_size=58).map(lambda tail: MAGIC + b"\0\1" + tail)))
def test_random_headers(raw: bytes) -> None:
    only_wire_errors(decode_header, raw)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.sampled_from([0, 0, 1, 2**32 - 1]))
def test_random_headers_with_a_right_digest(kind: int, length: int, reserved: int) -> None:
    only_wire_errors(decode_header, header_of(kind=kind, length=length, reserved=reserved))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=500), st.integers(0, 4))
def test_random_payloads(raw: bytes, pages: int) -> None:
    for call in (decode_frames, Commit.decode):
        only_wire_errors(call, raw)
    for call in (decode_numbers, decode_pages):
        only_wire_errors(call, raw, pages)
        only_wire_errors(call, raw + bytes(PAGE), pages)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(u64, st.integers(0, 300), st.binary(max_size=300)), max_size=6))
def test_random_frame_lengths(frames: list[tuple[int, int, bytes]]) -> None:
    only_wire_errors(decode_frames, b"".join(struct.pack("!QI", n, size) + body for n, size, body in frames))
