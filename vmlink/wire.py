# SPDX-License-Identifier: GPL-2.0-or-later
"""The framed wire format between two hosts: one fixed header, one checked payload.

Header, 64 bytes, network byte order (this format is Holdfast's own, version 1):

    magic 4 | version u16 | type u16 | vm u64 | term u64 | epoch u64 | seq u64 |
    length u32 | reserved u32 (0) | payload digest u64 | header digest u64

`vm` is the XXH3 of the VM's name, 0 for messages about the host. `seq` numbers the messages of one
direction that must arrive exactly once and in order; 0 marks those that may be lost. Both digests are
XXH3-64: they find corruption, they do not authenticate.

Everything here is pure: bytes in, messages out. A header is checked whole (magic, version, digest,
type, length) before a single payload byte is read, so that a hostile length never costs memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import xxhash

MAGIC = b"HFST"
VERSION = 1
HEADER = struct.Struct("!4sHHQQQQIIQQ")
_BODY = struct.Struct("!4sHHQQQQIIQ")  # the header without its own digest
PAGE = 4096
CHUNK_PAGES = 256
"""Pages per PAGES message: 1 MiB, small enough that a heartbeat never waits long behind one."""
MAX_PAYLOAD = 4 << 20
"""Bytes; the largest legal payload. Larger things are sent in pieces."""

Buffer = bytes | bytearray | memoryview
PageNumbers = np.ndarray[tuple[int], np.dtype[np.int64]]
PageData = np.ndarray[tuple[int, int], np.dtype[np.uint8]]


class WireError(Exception):
    """The peer sent what this version does not accept; the connection cannot be trusted further."""


class VersionError(WireError):
    """The peer speaks another version of this format."""


class Type(IntEnum):
    """What a message says."""

    HELLO = 1  # first on each connection, both ways
    BEAT = 2  # a sign of life on each link, with what was received
    STATE = 3  # role, phase and term of one VM
    SYNC = 10  # a first copy begins: forget any earlier replica
    PAGES = 11  # page numbers and contents
    ZEROS = 12  # page numbers of pages full of zeros
    DEVICE = 13  # a piece of the device state
    COMMIT = 14  # the epoch is complete: what it consisted of
    ACK = 15  # the backup has the whole epoch
    INBOUND = 16  # frames that the VM received (replay log)
    OUTBOUND = 17  # small frames that the VM sent in the epoch
    DISK = 18  # writes to a disk in the epoch (vmlink/disk/record.py)
    ORDER = 20  # what the other host's operator wants done here
    ANSWER = 21  # what came of it
    CONDITION = 22  # how whole a host is, and what it has
    DISK_READ = 30  # the primary asks for what a disk of the replica holds
    DISK_DATA = 31  # the answer
    DISK_STATE = 33  # what the images of a replica hold, in answer to SYNC (vmlink/disk/copy.py)
    DISK_BEGIN = 34  # the disks' first copy begins: since when they may differ
    DISK_ASK = 35  # what a part of a replica's disk holds (vmlink/disk/compare.py)
    DISK_HASHES = 36  # the answer


@dataclass(frozen=True)
class Header:
    """A checked header. `length` is the payload's size in bytes."""

    type: Type
    vm: int
    term: int
    epoch: int
    seq: int
    length: int
    digest: int


@dataclass(frozen=True)
class Message:
    """One message: a header's fields and a payload in parts that are sent one after the other."""

    type: Type
    vm: int = 0
    term: int = 0
    epoch: int = 0
    payload: tuple[Buffer, ...] = ()
    sent: Callable[[], None] | None = field(default=None, compare=False)
    """Called when all of it has been handed to the kernel; again if it is sent again."""

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return HEADER.size + sum(len(part) for part in self.payload)


def vm_id(name: str) -> int:
    """The 64-bit number that stands for a VM's name on the wire."""
    return xxhash.xxh3_64_intdigest(name.encode())


def digest(parts: Iterable[Buffer]) -> int:
    """XXH3-64 over the parts as if they were one."""
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()


def encode_header(message: Message, seq: int, payload_digest: int) -> bytes:
    """The 64 header bytes of `message` under stream number `seq`. Raises WireError when it is too large."""
    length = message.size - HEADER.size
    if length > MAX_PAYLOAD:
        raise WireError(f"{message.type.name} of {length} bytes: a message holds at most {MAX_PAYLOAD}")
    body = _BODY.pack(MAGIC, VERSION, message.type, message.vm, message.term, message.epoch,
                      seq, length, 0, payload_digest)
    return body + xxhash.xxh3_64_digest(body)


def decode_header(data: Buffer) -> Header:
    """Check 64 bytes and return what they say. Raises WireError, or VersionError for another version."""
    if len(data) != HEADER.size:
        raise WireError(f"a header of {len(data)} bytes instead of {HEADER.size}")
    magic, version, kind, vm, term, epoch, seq, length, reserved, payload_digest, own = HEADER.unpack(data)
    if magic != MAGIC:
        raise WireError(f"not a Holdfast frame (starts with {bytes(magic)!r})")
    if version != VERSION:  # before the digest: another version may compute it otherwise
        raise VersionError(f"the peer speaks wire version {version}, this host {VERSION}: "
                           "run the same Holdfast release on both hosts")
    if xxhash.xxh3_64_intdigest(bytes(data[:_BODY.size])) != own:
        raise WireError("a corrupt header")
    if length > MAX_PAYLOAD or reserved:
        raise WireError(f"a payload of {length} bytes announced; at most {MAX_PAYLOAD} are legal")
    try:
        known = Type(kind)
    except ValueError:
        raise WireError(f"unknown message type {kind}") from None
    return Header(known, vm, term, epoch, seq, length, payload_digest)


def check_payload(header: Header, payload: Buffer) -> None:
    """Raise WireError unless `payload` is what the header announced."""
    if len(payload) != header.length or xxhash.xxh3_64_intdigest(payload) != header.digest:
        raise WireError(f"a corrupt {header.type.name} payload")


# --- payloads ---------------------------------------------------------------------------------------

def encode_pages(numbers: PageNumbers, data: PageData) -> tuple[Buffer, ...]:
    """Page numbers (int64, n) and contents (uint8, n x 4096) as payload parts; no copy is made."""
    return numbers.astype("<i8", copy=False).data.cast("B"), data.data.cast("B")


def decode_pages(payload: Buffer, pages_in_ram: int) -> tuple[PageNumbers, PageData]:
    """The numbers and contents in a PAGES payload, as views. Raises WireError for numbers outside RAM."""
    count, rest = divmod(len(payload), 8 + PAGE)
    if rest or not count:
        raise WireError(f"a PAGES payload of {len(payload)} bytes")
    numbers = decode_numbers(memoryview(payload)[: 8 * count], pages_in_ram)
    data = np.frombuffer(payload, np.uint8, count * PAGE, 8 * count).reshape(count, PAGE)
    return numbers, data


def encode_numbers(numbers: PageNumbers) -> tuple[Buffer, ...]:
    """Page numbers alone, for ZEROS."""
    return (numbers.astype("<i8", copy=False).data.cast("B"),)


def decode_numbers(payload: Buffer, pages_in_ram: int) -> PageNumbers:
    """The page numbers in a payload. Raises WireError when one lies outside the guest's RAM."""
    if len(payload) % 8:
        raise WireError(f"page numbers in {len(payload)} bytes")
    numbers = np.frombuffer(payload, "<i8")
    if len(numbers) and (numbers.min() < 0 or numbers.max() >= pages_in_ram):
        raise WireError("a page number outside the guest's RAM")
    return numbers


_COMMIT = struct.Struct("!QQQQQQQ")


@dataclass(frozen=True)
class Commit:
    """What an epoch consisted of, so that the backup can tell a whole one.

    `consumed` is the number of the last inbound frame the guest had taken when the epoch ended: frames up
    to it are part of the checkpoint and need no replay. `released` is the last epoch whose output is out.
    `disk_writes` are the entries in its DISK messages, `disk_bytes` their data, of all disks together. `stored` is the
    last epoch of which the shared volumes have everything.
    """

    pages: int
    device_bytes: int
    consumed: int
    released: int = 0
    disk_writes: int = 0
    disk_bytes: int = 0
    stored: int = 0

    def encode(self) -> bytes:
        return _COMMIT.pack(self.pages, self.device_bytes, self.consumed, self.released, self.disk_writes,
                            self.disk_bytes, self.stored)

    @classmethod
    def decode(cls, payload: Buffer) -> Commit:
        if len(payload) != _COMMIT.size:
            raise WireError(f"a COMMIT payload of {len(payload)} bytes")
        return cls(*_COMMIT.unpack(payload))


_DISK_READ = struct.Struct("!QQII")
_DISK_DATA = struct.Struct("!QI")
MAX_READ = 1 << 20
"""Bytes of a disk that one DISK_READ may ask for."""


@dataclass(frozen=True)
class DiskRead:
    """The primary asks for `length` bytes of the disk of this index from `offset` on.

    The answer holds every epoch that was acknowledged before the question arrived, and may hold later ones.
    `number` comes back in the answer.
    """

    number: int
    disk: int
    offset: int
    length: int

    def encode(self) -> bytes:
        return _DISK_READ.pack(self.number, self.offset, self.disk, self.length)

    @classmethod
    def decode(cls, payload: Buffer, sizes: Sequence[int]) -> DiskRead:
        """`sizes`: bytes of each disk. Raises WireError for what does not lie within one of them."""
        if len(payload) != _DISK_READ.size:
            raise WireError(f"a DISK_READ payload of {len(payload)} bytes")
        number, offset, disk, length = _DISK_READ.unpack(payload)
        if disk >= len(sizes) or not 0 < length <= MAX_READ or offset + length > sizes[disk]:
            raise WireError(f"a read of {length} bytes at {offset} of disk number {disk}")
        return cls(number, disk, offset, length)


@dataclass(frozen=True)
class DiskData:
    """The answer to a DiskRead: `data`, or the `error` (an errno) that kept it from being read."""

    number: int
    error: int
    data: Buffer = b""

    def encode(self) -> tuple[Buffer, ...]:
        head = _DISK_DATA.pack(self.number, self.error)
        return (head, self.data) if self.data else (head,)

    @classmethod
    def decode(cls, payload: Buffer) -> DiskData:
        """`data` is a view of the payload. Raises WireError; whether the length is right only the asker knows."""
        if not _DISK_DATA.size <= len(payload) <= _DISK_DATA.size + MAX_READ:
            raise WireError(f"a DISK_DATA payload of {len(payload)} bytes")
        number, error = _DISK_DATA.unpack_from(payload)
        return cls(number, error, memoryview(payload)[_DISK_DATA.size:])


_ACK = struct.Struct("!Q")


@dataclass(frozen=True)
class Ack:
    """The backup has a whole epoch. `durable`: the last one whose writes to disks are on its own."""

    durable: int = 0

    def encode(self) -> bytes:
        return _ACK.pack(self.durable)

    @classmethod
    def decode(cls, payload: Buffer) -> Ack:
        if len(payload) != _ACK.size:
            raise WireError(f"an ACK payload of {len(payload)} bytes")
        return cls(*_ACK.unpack(payload))


_FRAME = struct.Struct("!QI")
MAX_FRAME = 128 << 10
"""Bytes; larger than any GSO frame with its vnet header."""


def encode_frames(frames: Iterable[tuple[int, bytes]]) -> bytes:
    """Numbered frames (vnet header included) for INBOUND and OUTBOUND."""
    return b"".join(_FRAME.pack(number, len(frame)) + frame for number, frame in frames)


def decode_frames(payload: Buffer) -> list[tuple[int, bytes]]:
    """The numbered frames in a payload. Raises WireError when they do not fit it exactly."""
    frames, at, view = [], 0, memoryview(payload)
    while at < len(view):
        if at + _FRAME.size > len(view):
            raise WireError("a payload of frames ends within a frame header")
        number, length = _FRAME.unpack_from(view, at)
        at += _FRAME.size
        if not 0 < length <= MAX_FRAME or at + length > len(view):
            raise WireError("a frame is longer than its payload")
        frames.append((number, bytes(view[at:at + length])))
        at += length
    return frames


def decode_pieces(message: Message) -> Buffer:
    """The payload of a received message: it always arrives as one part."""
    return message.payload[0] if message.payload else b""
