# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD protocol as its server speaks it with QEMU, pure: bytes in, answers out (`socket.py` is around it).

Source: the NBD project's doc/proto.md; fixed newstyle, simple replies. What is not needed is answered with
NBD_REP_ERR_UNSUP. FLUSH is offered by a Cache alone: elsewhere a write that was answered is as safe as it will be.

Requests are parsed as many as have arrived; the data of a write is a view of the buffer that it was received into.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol, runtime_checkable

import numpy as np

from vmlink.disk.record import SECTOR, Kind
from vmlink.wire import Buffer

MAX_BLOCK = 1 << 20
"""Bytes of one read or write, at most; QEMU cuts longer ones."""
ROOM = 1 << 20
"""Bytes of one receive buffer."""
MOST_READS = 32
"""Reads that may wait for their data; more than QEMU has under way at once."""
LONGEST_OPTION = 8 << 10
MOST_OPTIONS = 32

_GREETING = b"NBDMAGIC" + b"IHAVEOPT" + struct.pack(">H", 3)  # fixed newstyle, no zeroes
_OPTION = struct.Struct(">8sII")
_OPTION_REPLY = struct.Struct(">QIII")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC, _REPLY_MAGIC = 0x25609513, 0x67446698
_OPT_EXPORT_NAME, _OPT_ABORT, _OPT_INFO, _OPT_GO = 1, 2, 6, 7
_REP_ACK, _REP_INFO, _REP_UNSUP, _REP_INVALID, _REP_UNKNOWN = 1, 3, 0x80000001, 0x80000003, 0x80000006
_READ, _WRITE, _DISCONNECT, _FLUSH, _TRIM, _ZERO = 0, 1, 2, 3, 4, 6
_KINDS = {_TRIM: Kind.TRIM, _ZERO: Kind.ZERO}
_FLAGS = 1 | 1 << 5 | 1 << 6  # has flags, TRIM, WRITE_ZEROES
_CAN_FLUSH = 1 << 2
_INFO_EXPORT, _INFO_BLOCK_SIZE = 0, 3


class ProtocolError(Exception):
    """The other side does not speak NBD as it should: the connection has to end."""


class Export(Protocol):
    """A disk as it is served."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def write(self, kind: Kind, offset: int, length: int, data: Buffer) -> bool:
        """A change of the disk, taken when this returns. True: `data` is kept, so it must not change any more.
        Raises OSError when it cannot be taken."""
        ...

    def read(self, offset: int, length: int) -> Awaitable[Buffer]:
        """What the disk holds there. Raises OSError when that cannot be had now."""
        ...


@runtime_checkable
class Cache(Export, Protocol):
    """A disk whose writes are safe only after a flush."""

    def flush(self) -> Awaitable[None]:
        """Return when all writes that were answered are safe. Raises OSError when they cannot be made so."""
        ...


class Conversation:
    """One connection. Received bytes go into `room()`, and are announced with `received`.

    `find` gives the export of a name, None if there is none. `read` is called for each read with a handle, `flush` for
    each flush of a Cache; both are answered with `data` or `fail`. `answers` collects what has to be sent.
    """

    def __init__(self, find: Callable[[str], Export | None], read: Callable[[int, int, int], None],
                 flush: Callable[[int], None] = lambda handle: None) -> None:
        self._find, self._read, self._flush = find, read, flush
        self._buffer = np.empty(ROOM, np.uint8).data.cast("B")
        self._start = self._end = 0
        self._kept = False
        """Does anyone keep a part of the buffer?"""
        self._step = self._client_flags
        self._options = 0
        self.export: Export | None = None
        """What it is about, from the end of the handshake on."""
        self.answers: list[Buffer] = [_GREETING]
        self.reading = 0
        """Reads and flushes that wait for their answer."""
        self.over = False
        """The other side has said goodbye."""

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._buffer[self._end:]

    def received(self, count: int) -> None:
        """So many bytes were put into `room()`. Raises ProtocolError."""
        self._end += count
        self.proceed()

    def proceed(self) -> None:
        """Take what has arrived: all of it, unless too many reads wait. Raises ProtocolError."""
        while not self.over and self.reading < MOST_READS:
            missing = self._step()
            if missing:
                self._make_room(missing)
                return

    @property
    def stuck(self) -> bool:
        """Nothing more is to be received before a read is answered."""
        return self.reading >= MOST_READS

    def _make_room(self, wanted: int) -> None:
        """Let `wanted` bytes fit from the first one that was not taken; they are moved, at most one request's."""
        left = self._end - self._start
        if not self._kept and not left:
            self._start = self._end = 0
        if self._start + wanted <= len(self._buffer):
            return
        fresh = self._buffer if not self._kept and wanted <= len(self._buffer) and left <= self._start else \
            np.empty(max(ROOM, wanted), np.uint8).data.cast("B")
        fresh[:left] = self._buffer[self._start:self._end]
        self._buffer, self._start, self._end, self._kept = fresh, 0, left, False

    # --- handshake: each step takes one thing, or returns how many bytes it needs ---

    def _client_flags(self) -> int:
        if self._end - self._start < 4:
            return 4
        if bytes(self._take(4)) not in (b"\0\0\0\1", b"\0\0\0\3"):
            raise ProtocolError("it is no newstyle client")
        self._step = self._option
        return 0

    def _option(self) -> int:
        have = self._end - self._start
        if have < _OPTION.size:
            return _OPTION.size
        magic: bytes
        option: int
        length: int
        magic, option, length = _OPTION.unpack_from(self._buffer, self._start)
        if magic != b"IHAVEOPT" or length > LONGEST_OPTION:
            raise ProtocolError("an option that is none")
        if have < _OPTION.size + length:
            return _OPTION.size + length
        self._options += 1
        if self._options > MOST_OPTIONS:
            raise ProtocolError("options without end")
        self._take(_OPTION.size)
        self._obey(option, bytes(self._take(length)))
        return 0

    def _obey(self, option: int, data: bytes) -> None:
        if option == _OPT_ABORT:
            self._say(option, _REP_ACK)
            self.over = True
        elif option == _OPT_EXPORT_NAME:
            raise ProtocolError("it is too old a client")
        elif option not in (_OPT_INFO, _OPT_GO):
            self._say(option, _REP_UNSUP)
        else:
            length = int.from_bytes(data[:4], "big")
            if len(data) < 6 + length or (len(data) - 6 - length) % 2:
                self._say(option, _REP_INVALID)
                return
            export = self._find(data[4:4 + length].decode(errors="replace"))
            if export is None:
                self._say(option, _REP_UNKNOWN)
                return
            flags = _FLAGS | (_CAN_FLUSH if isinstance(export, Cache) else 0)
            self._say(option, _REP_INFO, struct.pack(">HQH", _INFO_EXPORT, export.size, flags))
            self._say(option, _REP_INFO, struct.pack(">HIII", _INFO_BLOCK_SIZE, SECTOR, 4096, MAX_BLOCK))
            self._say(option, _REP_ACK)
            if option == _OPT_GO:
                self.export, self._step = export, self._request

    def _say(self, option: int, reply: int, data: bytes = b"") -> None:
        self.answers.append(_OPTION_REPLY.pack(0x3e889045565a9, option, reply, len(data)) + data)

    def _take(self, count: int) -> memoryview:
        self._start += count
        return self._buffer[self._start - count:self._start]

    # --- requests ---

    def _request(self) -> int:
        """Take every whole request that is there."""
        buffer, at, end, answers = self._buffer, self._start, self._end, self.answers
        length: int
        try:
            while end - at >= 28:
                magic, _, kind, handle, offset, length = _REQUEST.unpack_from(buffer, at)
                if magic != _REQUEST_MAGIC:
                    raise ProtocolError("a request that is none")
                if kind == _WRITE:
                    if length > MAX_BLOCK:
                        raise ProtocolError(f"a write of {length} bytes")
                    after = at + 28 + length
                    if after > end:
                        return 28 + length
                    error = self._change(Kind.WRITE, offset, length, buffer[at + 28:after])
                    at = after
                elif kind == _READ or kind == _FLUSH and isinstance(self.export, Cache):
                    if self.stuck:
                        return 0
                    at += 28
                    self._start_read(handle, offset, length) if kind == _READ else self._start_flush(handle)
                    continue
                elif kind == _DISCONNECT:
                    self.over = True
                    return 0
                else:
                    at += 28
                    error = self._other(kind, offset, length)
                answers.append(_REPLY.pack(_REPLY_MAGIC, error, handle))
            return 28
        finally:
            self._start = at

    def _start_read(self, handle: int, offset: int, length: int) -> None:
        error = self._wrong(offset, length) or (errno.EINVAL if length > MAX_BLOCK else 0)
        if error:
            self.answers.append(_REPLY.pack(_REPLY_MAGIC, error, handle))
            return
        self.reading += 1
        self._read(handle, offset, length)

    def _start_flush(self, handle: int) -> None:
        self.reading += 1
        self._flush(handle)

    def _other(self, kind: int, offset: int, length: int) -> int:
        """A request that neither brings nor gets data; returns the errno to answer, 0 if it is done."""
        if kind == _FLUSH:
            return 0
        known = _KINDS.get(kind)
        return errno.EINVAL if known is None else self._change(known, offset, length, b"")

    def _change(self, kind: Kind, offset: int, length: int, data: Buffer) -> int:
        """Hand a change on; returns the errno to answer, 0 if it was taken."""
        error = self._wrong(offset, length)
        if not error:
            assert self.export is not None
            try:
                self._kept |= self.export.write(kind, offset, length, data)
            except OSError as failure:
                return failure.errno or errno.EIO
        return error

    def _wrong(self, offset: int, length: int) -> int:
        assert self.export is not None
        if not length or (offset | length) % SECTOR:
            return errno.EINVAL
        return errno.ENOSPC if offset + length > self.export.size else 0

    def data(self, handle: int, data: Buffer) -> None:
        """Answer a read; with no data, a flush."""
        self.reading -= 1
        self.answers += (_REPLY.pack(_REPLY_MAGIC, 0, handle), data)

    def fail(self, handle: int, error: int) -> None:
        """Answer a read or a flush with an errno."""
        self.reading -= 1
        self.answers.append(_REPLY.pack(_REPLY_MAGIC, error, handle))
