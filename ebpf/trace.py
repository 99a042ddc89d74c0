# SPDX-License-Identifier: GPL-2.0-or-later
"""Tracing: what the packet programs tell of each frame, the slots that ask for it, and the rings it goes into.

A slot is one listener with a ring of its own. The programs look at a slot only while its bit is set in their `trace`
word, so that a trace is switched on and off by writes to memory. A ring that is full loses records, and counts them.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Sequence
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum
from typing import Self

from ebpf.errors import BpfError
from ebpf.libbpf import TAKE, failure, library
from ebpf.state import GateState, GuardState, InboundState

VERSION = 1
SLOTS = 4
SNAP = 2048
"""Bytes of a frame in a record, at most."""
FILTER = 128
"""Instructions of a filter, at most."""
RECORD = struct.Struct("=BBHHHIHHQQQQQQ")
"""struct hf_record: version, point, source, caplen, segments, len, tag_proto, tag_tci, time_ns, number, boundary, held,
term, lost; `caplen` bytes of the frame follow."""

_RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF
_MOST = 65536  # records taken in one go


class Point(IntEnum):
    """enum hf_point: where a frame was, and what became of it there."""

    HELD = 1
    OVERFLOW = 2
    FAILED = 3
    RELEASED = 4
    EARLY = 5
    FENCED = 6
    EXPIRED = 7
    UNSTAMPED = 8
    RECEIVED = 9
    SHUT = 10


class Instruction(ctypes.Structure):
    """struct hf_instruction, of the classic packet filter."""

    _fields_ = [("code", c_uint16), ("jt", c_uint8), ("jf", c_uint8), ("k", c_uint32)]


class Slot(ctypes.Structure):
    """struct hf_slot. All but `lost_frames` is written by the service."""

    lost_frames: int
    points: int
    snap: int
    source: int
    instructions: int
    filter: ctypes.Array[Instruction]

    _fields_ = [
        ("lost_frames", c_uint64),
        ("reserved0", c_uint64 * 7),
        ("points", c_uint64),
        ("snap", c_uint32),
        ("source", c_uint32),
        ("instructions", c_uint32),
        ("reserved1", c_uint32 * 11),
        ("filter", Instruction * FILTER),
    ]


class Ring:
    """A ring of records: made by the service, read by the one process that traces. The memory is the kernel's."""

    def __init__(self, fd: int) -> None:
        """Use `create` or `open`."""
        self.fd = fd
        self._reader: int | None = None
        self._taken: list[bytes] = []
        self._callback = TAKE(self._take)  # referenced for as long as libbpf may call it

    @classmethod
    def create(cls, size: int) -> Self:
        """`size` in bytes, a power of two and at least a page. Raises `BpfError`."""
        fd = library()[0].bpf_map_create(_RINGBUF, b"holdfast_trace", 0, 0, size, None)
        if fd < 0:
            raise failure(f"a ring of {size} bytes for the trace cannot be made", fd)
        return cls(fd)

    @classmethod
    def open(cls, number: int) -> Self:
        """The ring with this number, of another process; needs CAP_SYS_ADMIN. Raises `BpfError`."""
        fd = library()[0].bpf_map_get_fd_by_id(number)
        if fd < 0:
            raise failure(f"the trace's ring {number} cannot be opened", fd)
        return cls(fd)

    def number(self) -> int:
        """What `open` takes."""
        info, size = (c_uint32 * 64)(), c_uint32(256)
        code = library()[0].bpf_obj_get_info_by_fd(self.fd, info, ctypes.byref(size))
        if code < 0:
            raise failure("the trace's ring has no number", code)
        return int(info[1])

    def read(self) -> list[bytes]:
        """The records that are there, in order; at most 65536 at a time. Raises `BpfError`."""
        lib = library()[0]
        if self._reader is None:
            self._reader = lib.ring_buffer__new(self.fd, self._callback, None, None)
            if not self._reader:
                raise failure("the trace's ring cannot be mapped", -(ctypes.get_errno() or errno.EINVAL))
        code = lib.ring_buffer__consume(self._reader)
        if code < 0 and len(self._taken) < _MOST:
            raise failure("the trace's ring cannot be read", code)
        taken, self._taken = self._taken, []
        return taken

    def _take(self, _: int, address: int, length: int) -> int:
        self._taken.append(ctypes.string_at(address, length))
        return 0 if len(self._taken) < _MOST else -errno.EAGAIN

    def close(self) -> None:
        """Idempotent."""
        if self._reader is not None:
            library()[0].ring_buffer__free(self._reader)
            self._reader = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Slots:
    """The slots of one front's programs. `rings`: a descriptor of the array of rings, duplicated here; `words`: the
    programs' states, whose `trace` word says which slots are in use."""

    def __init__(self, slots: list[Slot], rings: int, words: Sequence[GateState | InboundState | GuardState]) -> None:
        self._slots, self._rings, self._words = slots, os.dup(rings), words

    def begin(self, slot: int, ring: Ring, source: int, points: int, snap: int,
              filter: list[tuple[int, int, int, int]]) -> None:
        """Have frames told into `ring`, under the name `source`. Raises `BpfError`, and leaves the slot unused then."""
        if len(filter) > FILTER:
            raise BpfError(f"a filter of {len(filter)} instructions is too long for the kernel: it takes {FILTER}")
        place = self._slots[slot]
        place.lost_frames = 0
        place.points, place.source, place.snap = points, source, min(snap, SNAP)
        for at, instruction in enumerate(filter):
            place.filter[at] = Instruction(*instruction)
        place.instructions = len(filter)
        key, value = c_uint32(slot), c_uint32(ring.fd)
        code = library()[0].bpf_map_update_elem(self._rings, ctypes.byref(key), ctypes.byref(value), 0)
        if code < 0:
            raise failure("the trace's ring cannot be joined to the gate", code)
        for word in self._words:
            word.trace |= 1 << slot

    def end(self, slot: int) -> None:
        """Nothing is told into this slot's ring any more. Idempotent."""
        for word in self._words:
            word.trace &= ~(1 << slot)
        if self._rings >= 0:
            key = c_uint32(slot)
            library()[0].bpf_map_delete_elem(self._rings, ctypes.byref(key))

    def lost(self, slot: int) -> int:
        """Records that found the ring full since `begin`."""
        return int(self._slots[slot].lost_frames)

    def close(self) -> None:
        """End every trace. Idempotent."""
        for slot in range(SLOTS):
            self.end(slot)
        if self._rings >= 0:
            os.close(self._rings)
            self._rings = -1
