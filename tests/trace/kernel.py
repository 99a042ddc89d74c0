# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a packet program on one frame, without a device: BPF_PROG_TEST_RUN."""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_uint32, c_void_p
from pathlib import Path

from ebpf import libbpf, objects_dir
from ebpf.state import STAMP_FRAMES, GateState, InboundState
from ebpf.trace import RECORD, Ring, Slot, Slots

PROCEED, DROP, REDIRECT = 0, 2, 7


class _Run(ctypes.Structure):
    retval: int
    _fields_ = [
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p), ("data_size_in", c_uint32),
        ("data_size_out", c_uint32), ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32), ("retval", c_uint32), ("repeat", c_int), ("duration", c_uint32),
        ("flags", c_uint32), ("cpu", c_uint32), ("batch_size", c_uint32),
    ]  # fmt: skip


def run(program: int, frame: bytes) -> int:
    """The verdict of a program (a descriptor) on a frame."""
    lib = libbpf.library()[0]
    lib.bpf_prog_test_run_opts.argtypes = [c_int, c_void_p]
    data = ctypes.create_string_buffer(frame, len(frame))
    options = _Run(ctypes.sizeof(_Run), ctypes.addressof(data), None, len(frame), repeat=1)
    code = lib.bpf_prog_test_run_opts(program, ctypes.byref(options))
    assert code == 0, code
    return options.retval


class Programs:
    """Gate and inbound program, loaded and with room, attached to nothing; one ring to trace into."""

    def __init__(self, ring_bytes: int = 1 << 20, path: Path | None = None) -> None:
        self._object = libbpf.Object.load(path or objects_dir() / "gate.bpf.o")
        self.gate, self.inbound = self._object.program("gate"), self._object.program("inbound")
        self.state = self._object.state("gate_state", GateState)
        self.state.limit_frames, self.state.limit_bytes, self.state.hold_ifindex = STAMP_FRAMES, 1 << 30, 1
        self.inbound_state = self._object.state("inbound_state", InboundState)
        self.slots = Slots(self._object.states("trace_slots", Slot), self._object.map("trace_rings"),
                           [self.state, self.inbound_state])
        self.ring = Ring.create(ring_bytes)

    def records(self) -> list[tuple[tuple[int, ...], bytes]]:
        """What was told since the last call: fields, and what there is of the frame."""
        return [(RECORD.unpack_from(one), one[RECORD.size:]) for one in self.ring.read()]

    def close(self) -> None:
        self.slots.close()
        self.ring.close()
        self._object.close()
