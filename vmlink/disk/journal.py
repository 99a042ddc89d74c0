# SPDX-License-Identifier: GPL-2.0-or-later
"""The one file that says what the disks of a VM hold on this host: their state, and epochs that are being applied.

An epoch is whole over all disks of its VM, so there is one journal for all of them. It is written, with all that the
epoch wrote, before the first image is touched: killed at any moment, the images are a whole epoch once it has been
replayed, and to replay it twice does no harm.

Layout (this format is Holdfast's own), little-endian:

    two slots of SLOT bytes, the one with the higher serial counts:
        magic 8 | serial u64 | length u64 | digest 16 | content
    the log, from 2 * SLOT on, each record at a multiple of BLOCK:
        magic 8 | serial u64 | epoch u64 | writes u64 | data u64 | digest 16 |
        writes x (offset u64 | length u64 | disk u16 | kind u8 | 0 u40) | data of the WRITEs

A new state has a new serial and so empties the log. Digests are XXH3-128 over all that is not the digest. The file is
made in full at the start, so that a full file system is noticed then and not in the middle of a takeover.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from vmlink.disk.record import Kind, Write
from vmlink.errors import VmError
from vmlink.wire import Buffer

SLOT = 8192
"""Bytes of one copy of the state."""
BLOCK = 4096
"""Bytes; no two records share a page, so that a torn write harms nothing that was safe."""
LOG = 64 << 20
"""Bytes of log that are made at the start. One group of epochs may be larger: the file grows."""
_SLOT_HEAD = struct.Struct("<8sQQ16s")
_HEAD = struct.Struct("<8sQQQQ16s")
_SLOT_MAGIC, _RECORD_MAGIC = b"HFSTATE1", b"HFEPOCH1"
_ENTRY = np.dtype([("offset", "<u8"), ("length", "<u8"), ("disk", "<u2"), ("kind", "u1"), ("zero", "u1", 5)])
_AT_ONCE = 1024  # IOV_MAX


@dataclass(frozen=True)
class Group:
    """The writes of some epochs, the last of which is `epoch`: disk index and write; none overlaps another."""

    epoch: int
    writes: list[tuple[int, Write]]


class Journal:
    """See the module. Blocking, for one thread at a time. The file is this process's alone until `close`.

    Raises VmError where the file cannot be used, read or written.
    """

    def __init__(self, path: Path, room: int = LOG) -> None:
        self.path = path
        with self._told("opened"):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with self._told("locked"):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._serial, self.state = self._load()
            self._at = 2 * SLOT
            with self._told("made"):
                new = os.fstat(self._fd).st_size < 2 * SLOT + room
                os.posix_fallocate(self._fd, 0, 2 * SLOT + room)
                if new:
                    os.fsync(self._fd)
                    _sync_directory(path.parent)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # --- the state ---

    def _load(self) -> tuple[int, bytes | None]:
        """Serial and content of the newest slot; 0 and None in a new file."""
        found: list[tuple[int, bytes]] = []
        with self._told("read"):
            slots = [os.pread(self._fd, SLOT, at) for at in (0, SLOT)]
        for slot in slots:
            if len(slot) < SLOT:
                continue
            magic, serial, length, digest = _SLOT_HEAD.unpack_from(slot)
            content = slot[_SLOT_HEAD.size:_SLOT_HEAD.size + length]
            if magic == _SLOT_MAGIC and _slot_digest(serial, content) == digest:
                found.append((serial, content))
        if not found and any(any(slot) for slot in slots):
            raise VmError(f"{self.path}: the state of the disks is damaged",
                          "if the images here are good (the VM ran here last), remove the file; else keep this host "
                          "from starting the VM and remove file and images: the other host copies them anew")
        return max(found) if found else (0, None)

    def set_state(self, content: bytes) -> None:
        """On disk when this returns; the log is empty. All that was in the log must be in the images, flushed."""
        if len(content) > SLOT - _SLOT_HEAD.size:
            raise VmError(f"{self.path}: {len(content)} bytes of state")
        serial = self._serial + 1
        slot = _SLOT_HEAD.pack(_SLOT_MAGIC, serial, len(content), _slot_digest(serial, content)) + content
        with self._told("written"):
            os.pwrite(self._fd, slot.ljust(SLOT, b"\0"), serial % 2 * SLOT)
            os.fdatasync(self._fd)
        self._serial, self.state, self._at = serial, content, 2 * SLOT

    # --- the log ---

    @property
    def used(self) -> int:
        """Bytes in the log."""
        return self._at - 2 * SLOT

    def append(self, group: Group) -> None:
        """Add what is to be done; it counts once `sync` has returned."""
        table = np.zeros(len(group.writes), _ENTRY)
        table["disk"] = [disk for disk, _ in group.writes]
        table["offset"] = [write.offset for _, write in group.writes]
        table["length"] = [write.length for _, write in group.writes]
        table["kind"] = [write.kind for _, write in group.writes]
        data = [write.data for _, write in group.writes if write.kind is Kind.WRITE]
        size = sum(map(len, data))
        parts = [table.tobytes(), *data]
        facts = _RECORD_MAGIC, self._serial, group.epoch, len(table), size
        whole = _HEAD.size + len(parts[0]) + size
        with self._told("written"):
            self._write([_HEAD.pack(*facts, _record_digest(facts, parts)), *parts, bytes(-whole % BLOCK)], self._at)
        self._at += whole + -whole % BLOCK

    def _write(self, parts: Sequence[Buffer], at: int) -> None:
        for first in range(0, len(parts), _AT_ONCE):
            some = parts[first:first + _AT_ONCE]
            size = sum(map(len, some))
            done = os.pwritev(self._fd, some, at)
            if done < size:  # rare: the rest in one piece, or the reason why not
                rest = b"".join(some)[done:]
                while rest:
                    done += (more := os.pwrite(self._fd, rest, at + done))
                    rest = rest[more:]
            at += size

    def sync(self) -> None:
        """Return when all that was appended is on disk."""
        with self._told("written"):
            os.fdatasync(self._fd)

    def groups(self) -> Iterator[Group]:
        """What the log holds, in order; a record that did not get to the disk whole ends it."""
        self._at = 2 * SLOT
        while (found := self._record(self._at)) is not None:
            group, size = found
            self._at += size + -size % BLOCK
            yield group

    def _record(self, at: int) -> tuple[Group, int] | None:
        with self._told("read"):
            end = os.fstat(self._fd).st_size
            head = os.pread(self._fd, _HEAD.size, at)
            if len(head) < _HEAD.size:
                return None
            *facts, digest = _HEAD.unpack(head)
            magic, serial, epoch, count, size = facts
            body = count * _ENTRY.itemsize + size
            if magic != _RECORD_MAGIC or serial != self._serial or at + _HEAD.size + body > end:
                return None
            content = memoryview(bytearray(body))
            if _read(self._fd, content, at + _HEAD.size) < body:
                return None
        if _record_digest(tuple(facts), [content]) != digest:
            return None
        return Group(epoch, list(_writes(content, count))), _HEAD.size + body

    # --- something to keep ---

    def keep(self, content: bytes) -> None:
        """Put `content` where the log begins, on disk, for a state that follows and names it; the log must be empty."""
        with self._told("written"):
            self._write([content], 2 * SLOT)
            os.fdatasync(self._fd)

    def kept(self, length: int) -> bytes:
        """What `keep` kept, if nothing was appended since: the caller has a digest of it."""
        with self._told("read"):
            return os.pread(self._fd, length, 2 * SLOT)

    @contextlib.contextmanager
    def _told(self, done: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hints = {errno.ENOSPC: f"make room in {self.path.parent}", errno.EROFS: "see the kernel's log",
                     errno.EWOULDBLOCK: "another service, or another VM of this one, works with these disks",
                     errno.ENOENT: f"make the directory {self.path.parent}"}
            cause = "it is in use" if error.errno == errno.EWOULDBLOCK else error.strerror
            raise VmError(f"{self.path} could not be {done}: {cause}", hints.get(error.errno or 0, "")) from error


def _writes(content: memoryview, count: int) -> Iterator[tuple[int, Write]]:
    table = np.frombuffer(content, _ENTRY, count)
    at = count * _ENTRY.itemsize
    for entry in table.tolist():
        offset, length, disk, kind, _ = entry
        if kind == Kind.WRITE:
            yield disk, Write(Kind.WRITE, offset, length, content[at:at + length])
            at += length
        else:
            yield disk, Write(Kind(kind), offset, length)


def _slot_digest(serial: int, content: bytes) -> bytes:
    return xxhash.xxh3_128_digest(serial.to_bytes(8, "little") + content)


def _record_digest(facts: tuple[object, ...], parts: Sequence[Buffer]) -> bytes:
    state = xxhash.xxh3_128(_HEAD.pack(*facts, bytes(16)))
    for part in parts:
        state.update(part)
    return state.digest()


def _read(fd: int, into: memoryview, at: int) -> int:
    done = 0
    while done < len(into) and (more := os.preadv(fd, [into[done:]], at + done)):
        done += more
    return done


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
