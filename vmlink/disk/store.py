# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk's image as an export of QEMU: read, written, flushed, its holes looked up; whatever its format.

Many requests are under way at once (libnbd, one connection). Everything here blocks: it is for a worker thread,
one for each Store. The GIL is free while a request is sent or waited for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vmlink.disk.dirty import Numbers
from vmlink.disk.record import Kind, Write
from vmlink.errors import VmError

TIMEOUT = 120.0
"""Seconds without any answer after which an image counts as failed: a busy disk may take long to flush."""
DEPTH = 64
"""Requests under way at once."""
REQUEST = 1 << 20
"""Bytes of data in one request."""
ZERO_REQUEST = 1 << 30
"""Bytes in one request to write zeros."""
LOOK_FROM = 64 << 20
"""Bytes of zeros from which on it is looked up which of them are there already."""
_STATUS_REQUEST = (1 << 32) - (1 << 20)
_ALLOCATION = "base:allocation"

_REMEDIES = {
    errno.ENOSPC: "make room on the file system that holds the image",
    errno.EDQUOT: "raise the quota on the file system that holds the image",
    errno.EIO: "the disk under the image fails: see the kernel's log",
    errno.EROFS: "the file system that holds the image is read-only: see the kernel's log",
    errno.EPERM: "the image is read-only",
}


@dataclass(frozen=True)
class Extents:
    """What a part of a disk consists of, in order and without gaps. `zero`: reads as zeros, wherever those are."""

    offsets: Numbers
    lengths: Numbers
    zero: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def data(self) -> list[tuple[int, int]]:
        """Offset and length of each part that has to be read."""
        return self._those(~self.zero)

    def holes(self) -> list[tuple[int, int]]:
        """Offset and length of each part that reads as zeros."""
        return self._those(self.zero)

    def _those(self, flags: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, int]]:
        return list(zip(self.offsets[flags].tolist(), self.lengths[flags].tolist(), strict=True))


class Store:
    """See the module. `connect` first, in the thread that uses it; `disk` is the name for errors.

    What fails leaves the connection unusable: every later call fails too.
    """

    def __init__(self, disk: str) -> None:
        self.disk = disk
        self.size = 0
        """Bytes; known once connected."""
        self._nbd: Any = None
        self._can_status = False
        self._socket = socket.socket(socket.AF_UNIX)
        self._failed = ""

    def connect(self, path: Path, export: str, timeout: float = TIMEOUT) -> None:
        """Connect to the export of this name on the UNIX socket at `path`. Raises VmError."""
        try:
            import nbd
        except ImportError:
            raise VmError("libnbd for Python is not installed", "install the package python3-libnbd") from None
        self._error: Any = nbd.Error
        self._zero_state: int = nbd.STATE_ZERO
        handle = nbd.NBD()
        try:
            handle.set_export_name(export)
            handle.add_meta_context(_ALLOCATION)
            handle.set_pread_initialize(False)  # a failed read is an error here, its buffer is never looked at
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._socket.setblocking(False)
            handle.aio_connect_socket(os.dup(self._socket.fileno()))  # which it closes with itself
            deadline = time.monotonic() + timeout
            while handle.aio_is_connecting():
                self._wait(handle, deadline)
            if not handle.aio_is_ready():
                raise self._fault("QEMU closed the export")
            self.size = handle.get_size()
            self._can_status = handle.can_meta_context(_ALLOCATION)
        except nbd.Error as error:
            raise self._fault(f"cannot open the export {export}: {error.string}") from error
        except OSError as error:
            raise self._fault(f"cannot open the export {export}: {error.strerror or error}") from error
        self._nbd = handle

    def close(self) -> None:
        """End the connection. A call that is under way in another thread ends with VmError. Idempotent."""
        self._failed = self._failed or "the export is closed"
        with contextlib.suppress(OSError):  # never connected
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    # --- requests ---

    def read(self, offset: int, length: int) -> bytearray:
        """The bytes of one range. Raises VmError."""
        into = bytearray(length)
        self.read_into([(offset, memoryview(into))])
        return into

    def read_into(self, parts: Sequence[tuple[int, memoryview]]) -> None:
        """Fill each buffer from its offset on. Raises VmError."""
        self._run("read", (partial(self._nbd.aio_pread, view[at:at + REQUEST], offset + at)
                           for offset, view in parts for at in range(0, len(view), REQUEST)))

    def write(self, writes: Iterable[Write]) -> None:
        """Perform writes that do not overlap, in no order. They are on disk after `flush`. Raises VmError."""
        self._run("written", (request for write in writes for request in self._requests(write)))

    def needed(self, writes: Iterable[Write], look_from: int = LOOK_FROM) -> list[Write]:
        """The writes without stretches of zeros, of `look_from` bytes or more, that are zeros already: a format may
        take seconds to write them for each TiB. Raises VmError."""
        return [part for write in writes for part in self._needed(write, look_from)]

    def _needed(self, write: Write, look_from: int) -> Iterable[Write]:
        if write.kind is Kind.WRITE or write.length < look_from:
            yield write
            return
        for offset, length in self.extents(write.offset, write.length).data():
            yield Write(write.kind, offset, length)

    def _requests(self, write: Write) -> Iterable[Callable[[], int]]:
        if write.kind is Kind.WRITE:
            data = memoryview(write.data)
            for at in range(0, len(data), REQUEST):
                yield partial(self._nbd.aio_pwrite, data[at:at + REQUEST], write.offset + at)
            return
        for at in range(0, write.length, ZERO_REQUEST):
            # Not a discard, which may leave anything behind: zeros, as a hole where the format has holes.
            yield partial(self._nbd.aio_zero, min(ZERO_REQUEST, write.length - at), write.offset + at)

    def flush(self) -> None:
        """Return when everything written is on disk. Raises VmError."""
        self._run("flushed", (self._nbd.aio_flush for _ in range(1)))

    def extents(self, offset: int, length: int) -> Extents:
        """What a range consists of; all data where QEMU cannot tell. Raises VmError."""
        found: list[tuple[int, int, bool]] = []
        at, end = offset, offset + length
        while at < end:
            if not self._can_status:
                found.append((at, end - at, False))
                break
            for size, flags in self._status(at, min(end - at, _STATUS_REQUEST)):
                size = min(size, end - at)
                zero = bool(flags & self._zero_state)
                if found and found[-1][2] == zero:
                    found[-1] = found[-1][0], found[-1][1] + size, zero
                elif size:
                    found.append((at, size, zero))
                at += size
        table = np.array(found, np.int64).reshape(-1, 3)
        return Extents(table[:, 0], table[:, 1], table[:, 2].astype(np.bool_))

    def _status(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Lengths and flags from `offset` on, of at least one extent."""
        pairs: list[tuple[int, int]] = []

        def extent(context: str, _: int, entries: list[int], error: object) -> int:
            if context == _ALLOCATION:
                pairs.extend(zip(entries[::2], entries[1::2], strict=True))
            return 0

        self._run("looked through", (partial(self._nbd.aio_block_status, length, offset, extent) for _ in range(1)))
        if not any(size for size, _ in pairs):
            raise self._fault("QEMU does not say what is allocated")
        return pairs

    # --- how they are run ---
    # Buffers go to libnbd as they are: it keeps them until their request is done. What is wrapped in a nbd.Buffer it
    # never gives back (1.14: all that was ever read or written stayed in memory).

    def _run(self, done: str, requests: Iterable[Callable[[], int]]) -> None:
        """Issue all requests, DEPTH at a time, and wait for the last. `done`: what could not be done, for errors."""
        if self._failed or self._nbd is None:
            raise self._fault(self._failed or "the export is not connected")
        under_way = 0
        try:
            for request in requests:
                while under_way >= DEPTH:
                    under_way -= self._completed(under_way)
                request()
                under_way += 1
            while under_way:
                under_way -= self._completed(under_way)
        except self._error as error:
            raise self._refused(done, error) from error

    def _completed(self, under_way: int) -> int:
        """Wait for some of the requests that are under way, retire them, and return how many they were."""
        handle, count = self._nbd, 0
        deadline = time.monotonic() + TIMEOUT
        while not count:
            while count < under_way and (cookie := handle.aio_peek_command_completed()) > 0:
                handle.aio_command_completed(cookie)
                count += 1
            if not count:
                self._wait(handle, deadline)
        return count

    def _wait(self, handle: Any, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._fault(f"no answer for {TIMEOUT:g} s", "its disk hangs, or the host is overloaded")
        handle.poll(max(1, int(left * 1e3)))

    def _refused(self, done: str, error: Any) -> VmError:
        number = int(error.errnum)
        if self._failed:  # closed by another thread
            return self._fault(self._failed)
        if number not in _REMEDIES and not self._nbd.aio_is_ready():
            return self._fault(f"could not be {done}: QEMU closed the export")
        cause = error.string.rpartition(": ")[2]
        return self._fault(f"could not be {done}: {cause}", _REMEDIES.get(number, ""))

    def _fault(self, cause: str, hint: str = "") -> VmError:
        self._failed = self._failed or cause
        return VmError(f"disk {self.disk}: {cause}", hint)
