# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD protocol: however the bytes arrive, each write is taken once; what is no NBD ends the connection."""

from __future__ import annotations

import errno
import struct
from collections.abc import Awaitable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlink.disk.nbd import MAX_BLOCK, MOST_READS, ROOM, Conversation, ProtocolError
from vmlink.disk.record import SECTOR, Kind
from vmlink.wire import Buffer

SIZE = 64 << 20
READ, WRITE, DISCONNECT, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6
relaxed = settings(deadline=None, max_examples=100)


class Disk:
    """Keeps what it is told, as the VM's drives do while they record, or copies it."""

    size = SIZE

    def __init__(self, keeps: bool = True) -> None:
        self.keeps = keeps
        self.broken = 0
        self.writes: list[tuple[Kind, int, int, Buffer]] = []

    def write(self, kind: Kind, offset: int, length: int, data: Buffer) -> bool:
        if self.broken:
            raise OSError(self.broken, "broken")
        self.writes.append((kind, offset, length, data if self.keeps else bytes(data)))
        return self.keeps

    def read(self, offset: int, length: int) -> Awaitable[Buffer]:
        raise NotImplementedError

    def taken(self) -> list[tuple[Kind, int, int, bytes]]:
        return [(kind, offset, length, bytes(data)) for kind, offset, length, data in self.writes]


class Client:
    """A conversation with a client's side."""

    def __init__(self, disk: Disk | None = None) -> None:
        self.disk = disk or Disk()
        self.reads: list[tuple[int, int, int]] = []
        self.talk = Conversation({"data": self.disk}.get, lambda *read: self.reads.append(read))

    def say(self, data: bytes, at_a_time: int = 1 << 30) -> None:
        while data:
            room = self.talk.room()
            assert len(room)
            count = min(len(room), len(data), at_a_time)
            room[:count] = data[:count]
            data = data[count:]
            self.talk.received(count)

    def heard(self) -> bytes:
        said = b"".join(self.talk.answers)
        self.talk.answers.clear()
        return said

    def begin(self) -> Client:
        self.say(hello())
        self.heard()
        return self


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def go(name: str = "data", number: int = 7) -> bytes:
    return option(number, struct.pack(">I", len(name)) + name.encode() + struct.pack(">HH", 1, 3))


def hello() -> bytes:
    return struct.pack(">I", 3) + go()


def request(kind: int, offset: int = 0, length: int = SECTOR, data: bytes = b"", handle: int = 1) -> bytes:
    return struct.pack(">IHHQQI", 0x25609513, 0, kind, handle, offset, length) + data


def reply(handle: int = 1, error: int = 0, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, handle) + data


def test_the_handshake() -> None:
    client = Client()
    assert client.heard() == b"NBDMAGICIHAVEOPT\0\3"
    client.say(struct.pack(">I", 3) + option(8) + go("other") + go(number=6) + option(7, b"\0\0\0\xff") + go())
    said, replies = client.heard(), []
    while said:
        magic, number, kind, length = struct.unpack_from(">QIII", said)
        assert magic == 0x3e889045565a9
        replies.append((number, kind, said[20:20 + length]))
        said = said[20 + length:]
    about = [(3, struct.pack(">HQH", 0, SIZE, 1 | 32 | 64)), (3, struct.pack(">HIII", 3, SECTOR, 4096, MAX_BLOCK)),
             (1, b"")]
    assert replies == [(8, 0x80000001, b""), (7, 0x80000006, b""), *((6, *info) for info in about),
                       (7, 0x80000003, b""), *((7, *info) for info in about)]


@pytest.mark.parametrize("words", [
    struct.pack(">I", 0), struct.pack(">I", 3) + b"IHAVENOT" + bytes(8), struct.pack(">I", 3) + option(1, b"data"),
    struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, 1 << 20), struct.pack(">I", 3) + option(8) * 100,
    hello() + bytes(28), hello() + request(WRITE, length=MAX_BLOCK + SECTOR),
    hello() + request(WRITE, length=2**32 - 1),
])
def test_what_is_no_nbd_ends_the_connection(words: bytes) -> None:
    client = Client()
    with pytest.raises(ProtocolError):
        client.say(words)
    assert not client.disk.writes


def test_goodbye() -> None:
    for words in (struct.pack(">I", 3) + option(2), hello() + request(DISCONNECT)):
        client = Client()
        client.say(words)
        assert client.talk.over


@pytest.mark.parametrize(("offset", "length", "error"), [
    (0, 0, errno.EINVAL), (1, SECTOR, errno.EINVAL), (0, SECTOR - 1, errno.EINVAL), (SIZE, SECTOR, errno.ENOSPC),
    (SIZE - SECTOR, 2 * SECTOR, errno.ENOSPC), (2**64 - SECTOR, 2 * SECTOR, errno.ENOSPC)])
@pytest.mark.parametrize("kind", [READ, WRITE, TRIM, ZERO])
def test_what_lies_outside_the_disk_is_refused(kind: int, offset: int, length: int, error: int) -> None:
    client = Client().begin()
    client.say(request(kind, offset, length, bytes(length) if kind == WRITE else b"") + request(FLUSH, handle=2))
    assert client.heard() == reply(error=error) + reply(2)
    assert not client.disk.writes and not client.reads


def test_what_is_unknown_or_fails_is_answered() -> None:
    client = Client().begin()
    client.disk.broken = errno.EIO
    client.say(request(5) + request(READ, length=MAX_BLOCK + SECTOR, handle=2) + request(TRIM, handle=3)
               + request(WRITE, data=bytes(SECTOR), handle=4) + request(FLUSH, handle=5))
    assert client.heard() == (reply(1, errno.EINVAL) + reply(2, errno.EINVAL) + reply(3, errno.EIO)
                              + reply(4, errno.EIO) + reply(5))


def test_a_read_is_answered_when_its_data_are_there() -> None:
    client = Client().begin()
    client.say(request(READ, SECTOR, SECTOR, handle=7) + request(READ, 0, SECTOR, handle=8) + request(FLUSH, handle=9))
    assert client.heard() == reply(9)
    assert client.reads == [(7, SECTOR, SECTOR), (8, 0, SECTOR)]
    client.talk.data(8, b"x" * SECTOR)
    client.talk.fail(7, errno.EIO)
    assert client.heard() == reply(8, data=b"x" * SECTOR) + reply(7, errno.EIO)


def test_reads_without_end_wait() -> None:
    client = Client().begin()
    client.say(b"".join(request(READ, handle=number) for number in range(MOST_READS + 2)) + request(FLUSH, handle=99))
    assert client.talk.stuck and len(client.reads) == MOST_READS and client.heard() == b""
    for handle in (0, 1, 2):
        client.talk.fail(handle, errno.EIO)
        client.talk.proceed()
    assert client.heard() == reply(0, errno.EIO) + reply(1, errno.EIO) + reply(99) + reply(2, errno.EIO)
    assert len(client.reads) == MOST_READS + 2


@st.composite
def one_request(draw: st.DrawFn) -> tuple[Kind, int, int, bytes]:
    kind = draw(st.sampled_from(Kind))
    length = draw(st.sampled_from([SECTOR, 4096, 65536 + SECTOR, 300 << 10, MAX_BLOCK]))
    offset = draw(st.integers(0, (SIZE - length) // SECTOR)) * SECTOR
    return kind, offset, length, bytes([draw(st.integers(0, 255))]) * length if kind is Kind.WRITE else b""


NUMBERS = {Kind.WRITE: WRITE, Kind.TRIM: TRIM, Kind.ZERO: ZERO}


def spoken(writes: Iterable[tuple[Kind, int, int, bytes]]) -> tuple[bytes, bytes]:
    """The requests, and what must be answered."""
    asked = [request(NUMBERS[kind], offset, length, data, handle)
             for handle, (kind, offset, length, data) in enumerate(writes)]
    return b"".join(asked), b"".join(reply(handle) for handle in range(len(asked)))


@relaxed
@given(st.lists(one_request(), max_size=12), st.sampled_from([1 << 30, ROOM, 65536, 40001, 4099]), st.booleans())
def test_each_write_is_taken_once_however_it_arrives(writes: list[tuple[Kind, int, int, bytes]], at_a_time: int,
                                                     keeps: bool) -> None:
    client = Client(Disk(keeps)).begin()
    asked, answers = spoken(writes)
    client.say(asked, at_a_time)
    assert client.disk.taken() == writes
    assert client.heard() == answers


@pytest.mark.parametrize("keeps", [True, False])
def test_byte_by_byte(keeps: bool) -> None:
    client = Client(Disk(keeps))
    writes = [(Kind.WRITE, 0, SECTOR, b"a" * SECTOR), (Kind.ZERO, 0, SECTOR, b""), (Kind.WRITE, 0, 4096, b"b" * 4096)]
    asked, answers = spoken(writes)
    client.say(hello() + asked, 1)
    assert client.disk.taken() == writes and client.heard().endswith(answers)


def test_data_that_nobody_keeps_costs_no_new_buffer() -> None:
    client = Client(Disk(keeps=False)).begin()
    first = client.talk.room().obj
    for _ in range(20):
        client.say(request(WRITE, 0, 300 << 10, bytes(300 << 10)))
    assert client.talk.room().obj is first
