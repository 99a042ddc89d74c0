# SPDX-License-Identifier: GPL-2.0-or-later
"""Records and notes joined: each frame gets its epoch, its place in it, what it waited for; whatever comes when."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.trace import journey as module
from appliance.trace import notes
from appliance.trace.event import Event, Frame, Waits
from appliance.trace.event import Point as Shown
from appliance.trace.journey import Journey
from ebpf.trace import Point
from tests.trace.events import FRAME, OFFSET, VM, Gate, acked, alone, batch, begin, marked, record, released, sent


def frames(events: Iterable[Event]) -> list[Frame]:
    return [event for event in events if isinstance(event, Frame)]


def one_epoch() -> list[notes.Note]:
    return [alone(1001, 10, False), marked(2000, 1, 12), sent(2300, 1), acked(2600, 1), released(3000, 1)]


def test_a_frame_that_waited_for_its_epoch() -> None:
    records = [record(Point.HELD, 1500, 12, boundary=10, held=77),
               record(Point.RELEASED, 2750, 12, boundary=12, term=1)]
    held, out = frames(Journey(begin()).feed(batch(4000, *one_epoch()), records))
    assert (held.name, held.point, held.at_ns) == ("1.2", "held", 1500 + OFFSET)
    assert (held.held_bytes, held.held_frames) == (77, 1)
    assert (out.name, out.point, out.cause, out.hold_ns) == ("1.2", "released", "ack", 1250)
    assert out.waits == Waits(500, 300, 300, 150) and out.waits.longest() == "epoch"
    assert out.packet_id == held.packet_id == 1 << 32 | 2
    assert (out.under, out.committed, out.verdict, held.verdict) == (1, 12, 0, 7)


def test_what_is_not_settled_waits() -> None:
    """Until the service has said everything up to a frame's time it may belong to the epoch after."""
    journey = Journey(begin())
    held = record(Point.HELD, 2100, 13)
    assert not frames(journey.feed(batch(1900, alone(1001, 10, False)), [held]))
    assert not frames(journey.feed(batch(0)))
    (frame,) = frames(journey.feed(batch(2150, marked(2000, 1, 12))))
    assert frame.name == "2.1"


def test_a_release_before_the_word_of_it_is_no_acknowledged_one() -> None:
    records = [record(Point.HELD, 1500, 12), record(Point.RELEASED, 2500, 12, boundary=12, term=1)]
    _, out = frames(Journey(begin()).feed(batch(4000, *one_epoch()), records))
    assert out.cause == "none" and out.hold_ns == 1000 and out.waits == Waits(500, 300, 200, 0)


def test_a_vm_that_runs_alone() -> None:
    records = [record(Point.HELD, 1500, 5), record(Point.RELEASED, 1510, 5, boundary=5, term=1)]
    held, out = frames(Journey(begin()).feed(batch(4000, alone(1001, 4)), records))
    assert (held.name, out.name, out.cause, out.waits) == ("0.5", "0.5", "alone", Waits(0, 0, 0, 10))


def test_what_went_on_before_the_trace() -> None:
    """Epochs that ended before it began; a frame that was held before it."""
    past: list[notes.Alone | notes.Marked] = [alone(10, 3, False), marked(500, 1, 7), marked(600, 2, 9)]
    journey = Journey(begin(past=past, acked=1))
    records = [record(Point.RELEASED, 1100, 7, boundary=9, term=1), record(Point.HELD, 1200, 10),
               record(Point.RELEASED, 1300, 8, boundary=9, term=1)]
    before, held, late = frames(journey.feed(batch(4000, acked(1250, 2)), records))
    assert (before.name, before.cause, before.hold_ns) == ("1.4", "ack", None)
    assert held.name == "3.1"
    assert (late.name, late.cause) == ("2.1", "ack")


def test_what_was_sent_alone_and_leaves_with_the_first_epoch() -> None:
    said = [alone(1001, 0), alone(1600, 5, False), marked(1700, 1, 5), sent(1800, 1), acked(1900, 1)]
    records = [record(Point.HELD, 1500, 5), record(Point.RELEASED, 2000, 5, boundary=5, term=1)]
    held, out = frames(Journey(begin()).feed(batch(4000, *said), records))
    assert (held.name, out.name, out.cause, out.waits) == ("0.5", "0.5", "ack", Waits(200, 100, 100, 100))


def test_an_epoch_that_never_ends() -> None:
    """The backup is gone: what waited goes out, and belongs to the epoch in which it was sent."""
    said = [alone(1001, 0, False), marked(2000, 1, 2), alone(3000, 4)]
    records = [record(Point.HELD, 1500, 1), record(Point.HELD, 2500, 4),
               record(Point.RELEASED, 3100, 1, boundary=4, term=2),
               record(Point.RELEASED, 3110, 4, boundary=4, term=2), record(Point.HELD, 3200, 5)]
    found = frames(Journey(begin()).feed(batch(4000, *said), records))
    assert [frame.name for frame in found] == ["1.1", "2.2", "1.1", "2.2", "0.5"]
    assert [frame.cause for frame in found] == ["", "", "alone", "alone", ""]


def again(at: int, until: int = 0) -> notes.Again:
    return notes.Again(at_ns=at, until_ns=until, vm=VM, frames=1, point="replayed")


def test_what_this_host_sends_itself() -> None:
    records = [record(Point.RELEASED, at, 65536, boundary=65536, term=2) for at in (1199, 1250, 1301)]
    said = [again(1100), again(1100, 1110), again(1200), again(1200, 1300)]
    events = Journey(begin(past=[alone(1, 65000)])).feed(batch(4000, *said), records)
    found = frames(events)
    assert [(frame.point, frame.name) for frame in found] == [
        ("released", "0.65536"), ("replayed", "-"), ("released", "0.65536")]
    assert found[1].packet_id == 0
    assert [event.until_ns - OFFSET for event in events if isinstance(event, notes.Again)] == [1110, 1300]


def test_a_service_that_died_while_it_sent_by_itself() -> None:
    journey = Journey(begin(past=[alone(1, 65000)]))
    journey.hear(batch(0, again(1200)))
    (frame,) = frames(journey.finish([record(Point.RELEASED, 1250, 65536, boundary=65536, term=2)]))
    assert frame.point == "replayed"


def test_what_is_thrown_away() -> None:
    dropped = notes.Dropped(at_ns=2000, vm=VM, first=2, last=3, cause="taken over")
    records = [record(Point.HELD, 1500 + number, number) for number in (1, 2, 3)]
    found = frames(Journey(begin(past=[alone(1, 0, False)])).feed(batch(4000, dropped), records))
    assert [(frame.point, frame.name) for frame in found[3:]] == [("discarded", "1.2"), ("discarded", "1.3")]
    assert found[3].cause == "taken over" and found[3].hold_ns == 498 and found[3].snap == FRAME


def test_frames_that_no_program_saw() -> None:
    copies = notes.Copies(at_ns=2000, vm=VM, point="injected", cause="replay", frames=[notes.Copied(900, FRAME)])
    events = Journey(begin()).feed(batch(4000, copies))
    (frame,) = frames(events)
    assert (frame.point, frame.size, frame.snap, frame.verdict) == ("injected", 900, FRAME, 0)
    assert isinstance(events[0], notes.Copies) and not events[0].frames, "told once"


def test_the_guards_reasons() -> None:
    kinds = {Point.EARLY: ("dropped", "early"), Point.EXPIRED: ("dropped", "expired"),
             Point.FENCED: ("fenced", "no-term"), Point.UNSTAMPED: ("dropped", "unstamped"),
             Point.OVERFLOW: ("overflow", "limit"), Point.FAILED: ("overflow", "memory"),
             Point.SHUT: ("refused", "shut"), Point.RECEIVED: ("received", "")}
    records = [record(point, 1100 + at, 0 if point > 7 else 1) for at, point in enumerate(kinds)]
    found = frames(Journey(begin()).feed(batch(4000), records))
    assert [(frame.point, frame.cause) for frame in found] == list(kinds.values())
    assert {frame.verdict for frame in found[:-1]} == {2}


def test_a_tag_that_is_beside_the_frame_is_put_back() -> None:
    tagged = record(Point.RECEIVED, 1100, tag=(0x8100, 5))
    (frame,) = frames(Journey(begin()).feed(batch(4000), [tagged]))
    assert frame.snap == FRAME[:12] + b"\x81\x00\x00\x05" + FRAME[12:] and frame.size == len(FRAME) + 4


def test_nonsense_is_passed_over() -> None:
    odd = [record(Point.HELD, 1100, 1)[:0] or b"\x09" + bytes(63), record(Point.HELD, 1100, 1, source=9),
           b"\x01\xff" + record(Point.HELD, 1100, 1)[2:]]
    assert not frames(Journey(begin()).feed(batch(4000), odd))


def test_the_end_of_the_service_settles_the_rest() -> None:
    journey = Journey(begin())
    assert not frames(journey.feed(batch(1200, alone(1001, 0)), [record(Point.HELD, 1500, 1)]))
    assert [frame.name for frame in frames(journey.finish([record(Point.HELD, 1600, 2)]))] == ["0.1", "0.2"]
    assert not journey.finish()


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD", 1000)
    monkeypatch.setattr(module, "_REMEMBERED", 100)
    journey = Journey(begin(past=[alone(1, 0)]))
    for first in range(1, 10_000, 100):
        journey.feed(batch(first + 5000), [record(Point.HELD, first + one, first + one) for one in range(100)])
    vm = journey._vms[VM]
    assert len(vm.held) == 1000
    for epoch in range(1, 1000):
        journey.feed(batch(10**9 + epoch, marked(10**9 + epoch, epoch, 10**6 + epoch), acked(10**9 + epoch, epoch)))
    assert len(vm.lives) <= 200 and len(vm.ends) == len(vm.spans) <= 200


@st.composite
def played(draw: st.DrawFn) -> Gate:
    """A gate with some history, alone and protected by turns."""
    gate = Gate()
    gate.tell(alone(gate.tick(), 0))
    for step in draw(st.lists(st.sampled_from("ssssmmcccpaf"), max_size=60)):
        if step == "s":
            gate.send()
        elif step == "p" and gate.is_alone:
            gate.protect()
        elif step == "a" and not gate.is_alone:
            gate.go_alone()
            gate.term += 1
            gate.tell(notes.Happened(at_ns=gate.tick(), vm=VM, event="gate-open", fields={"term": gate.term}))
        elif step == "m" and not gate.is_alone:
            gate.mark()
        elif step == "c" and not gate.is_alone and gate.committed < gate.epoch:
            gate.commit()
        elif step == "f" and gate.is_alone:
            gate.free(gate.issued)
    return gate


@settings(max_examples=150, deadline=None)
@given(played(), st.data())
def test_however_it_arrives_each_frame_is_named_right(gate: Gate, data: st.DataObject) -> None:
    """Records may come long before or after the notes; only what the service says it has said is relied on."""
    journey, events = Journey(begin()), list[Event]()
    said = given = 0
    while said < len(gate.told):
        before, said = said, min(len(gate.told), said + data.draw(st.integers(1, 6)))
        read, given = given, min(len(gate.told), max(given, said + data.draw(st.integers(0, 3))))
        known = [note for _, note in gate.told[before:said] if not isinstance(note, bytes)]
        records = [one for _, one in gate.told[read:given] if isinstance(one, bytes)]
        events += journey.feed(batch(gate.told[said - 1][0], *known), records)
    events += journey.finish()
    named = frames(events)
    assert {frame.number: (frame.term, frame.epoch, frame.seq) for frame in named} == gate.truth
    assert [frame.at_ns for frame in named] == sorted(frame.at_ns for frame in named)
    out = [frame for frame in named if frame.point is Shown.RELEASED]
    assert all(frame.cause in ("ack", "alone") for frame in out)
    for frame in out:
        assert frame.waits is not None and frame.hold_ns is not None
        waits = frame.waits
        assert waits.epoch_ns + waits.transfer_ns + waits.ack_ns + waits.release_ns == frame.hold_ns >= 0
