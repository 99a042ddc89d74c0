# SPDX-License-Identifier: GPL-2.0-or-later
"""What the programs tell of each frame: records, slots, rings; and that telling costs the frame nothing."""

from __future__ import annotations

import ctypes
import re
import time
from pathlib import Path

from ebpf import trace
from ebpf.trace import RECORD, Point, Ring, Slot
from tests.trace.kernel import DROP, REDIRECT, Programs, run

HEADER = (Path(__file__).resolve().parents[2] / "ebpf" / "common.h").read_text()
FRAME = bytes.fromhex("525400aa0001525400aa0010") + b"\x88\xb5" + bytes(range(200))
ALL = 0xFFFFFFFF


def defined(name: str) -> int:
    found = re.search(rf"#define {name} +(\d+)", HEADER)
    assert found, name
    return int(found[1])


def test_both_sides_mean_the_same() -> None:
    assert defined("HF_TRACE_VERSION") == trace.VERSION
    assert defined("HF_TRACE_SLOTS") == trace.SLOTS
    assert defined("HF_TRACE_SNAP") == trace.SNAP
    assert defined("HF_TRACE_FILTER") == trace.FILTER
    named = {name: int(number) for name, number in re.findall(r"\tHF_([A-Z]+) = (\d+),", HEADER)}
    assert named == {point.name: point.value for point in Point}
    assert f"sizeof(struct hf_record) == {RECORD.size}," in HEADER
    assert ctypes.sizeof(Slot) == 128 + 8 * trace.FILTER
    words = "version point source caplen segments len tag_proto tag_tci time_ns number boundary held lost term"
    record = HEADER[HEADER.index("struct hf_record {"):HEADER.index("struct hf_instruction {")]
    assert set(re.findall(r"__u\d+ (\w+);", record)) == set(words.split())


def test_nobody_asks(programs: Programs) -> None:
    assert run(programs.gate, FRAME) == REDIRECT
    assert programs.state.issued_frames == 1 and not programs.records()


def test_a_held_frame(programs: Programs) -> None:
    programs.slots.begin(0, programs.ring, 7, ALL, 64, [])
    before = time.monotonic_ns()
    assert [run(programs.gate, FRAME) for _ in range(2)] == [REDIRECT] * 2
    (first, snap), (second, _) = programs.records()
    version, point, source, caplen, _, length, proto, _, at, number, boundary, held, term, lost = first
    assert (version, point, source, proto) == (trace.VERSION, Point.HELD, 7, 0)
    assert (caplen, length, snap) == (64, len(FRAME), FRAME[:64])
    assert before <= at <= second[8] <= time.monotonic_ns()
    assert (number, boundary, held, term, lost) == (1, 0, 0, 0, 0)
    assert (second[9], second[11]) == (2, len(FRAME))


def test_a_short_frame_is_told_whole(programs: Programs) -> None:
    programs.slots.begin(0, programs.ring, 0, ALL, trace.SNAP, [])
    run(programs.gate, FRAME[:60])
    ((fields, snap),) = programs.records()
    assert fields[3] == fields[5] == 60 and snap == FRAME[:60]


def test_what_does_not_fit_is_told_too(programs: Programs) -> None:
    programs.slots.begin(0, programs.ring, 0, ALL, 64, [])
    programs.state.limit_frames = 1
    assert [run(programs.gate, FRAME) for _ in range(2)] == [REDIRECT, DROP]
    assert [Point(fields[1]) for fields, _ in programs.records()] == [Point.HELD, Point.OVERFLOW]


def test_inbound(programs: Programs) -> None:
    programs.slots.begin(0, programs.ring, 0, ALL, 64, [])
    assert run(programs.inbound, FRAME) == DROP
    programs.inbound_state.open = programs.inbound_state.vm_ifindex = 1
    assert run(programs.inbound, FRAME) == REDIRECT
    assert [Point(fields[1]) for fields, _ in programs.records()] == [Point.SHUT, Point.RECEIVED]


def test_only_the_points_that_are_asked_for(programs: Programs) -> None:
    programs.slots.begin(0, programs.ring, 0, 1 << Point.RECEIVED, 64, [])
    run(programs.gate, FRAME)
    assert not programs.records()


def test_each_slot_hears_in_its_own_way(programs: Programs) -> None:
    other = Ring.create(1 << 16)
    programs.slots.begin(0, programs.ring, 1, ALL, 64, [])
    programs.slots.begin(3, other, 2, ALL, 16, [])
    run(programs.gate, FRAME)
    programs.slots.end(0)
    run(programs.gate, FRAME)
    (mine,), theirs = programs.records(), other.read()
    assert mine[0][2] == 1 and len(mine[1]) == 64
    assert [RECORD.unpack_from(one)[2] for one in theirs] == [2, 2] and len(theirs[0]) == RECORD.size + 16
    programs.slots.end(3)
    run(programs.gate, FRAME)
    assert not programs.records() and not other.read()
    assert programs.state.trace == programs.inbound_state.trace == 0
    other.close()


def test_a_full_ring_costs_records_and_no_frame(programs: Programs) -> None:
    small = Ring.create(4096)
    programs.slots.begin(0, small, 0, ALL, 64, [])
    assert all(run(programs.gate, FRAME) == REDIRECT for _ in range(100))
    told = small.read()
    assert programs.state.issued_frames == 100
    assert 0 < len(told) < 100 and programs.slots.lost(0) == 100 - len(told)
    run(programs.gate, FRAME)
    (after,) = small.read()
    assert RECORD.unpack_from(after)[-1] == 100 - len(told), "each record says what is missing before it"
    programs.slots.end(0)
    programs.slots.begin(0, small, 0, ALL, 64, [])
    assert programs.slots.lost(0) == 0
    small.close()


def test_another_process_reads_the_ring(programs: Programs) -> None:
    programs.slots.begin(0, programs.ring, 0, ALL, 64, [])
    run(programs.gate, FRAME)
    there = Ring.open(programs.ring.number())
    assert len(there.read()) == 1
    there.close()
    there.close()
    assert not programs.records(), "what one has read is read"


def test_a_ring_outlives_whoever_made_it(programs: Programs) -> None:
    """The service ends first: what was told until then can still be read."""
    programs.slots.begin(0, programs.ring, 0, ALL, 64, [])
    there = Ring.open(programs.ring.number())
    run(programs.gate, FRAME)
    programs.slots.close()
    programs.ring.close()
    assert len(there.read()) == 1
    there.close()
