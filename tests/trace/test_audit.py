# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit: it proves what is right, and finds each way in which a frame may have left as it must not have."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from appliance.trace import notes
from appliance.trace.audit import PROVEN, REFUTED, UNDECIDED, Audit, audit, text
from appliance.trace.capture import Capture
from appliance.trace.event import Event, Frame, Point
from appliance.trace.journey import Journey
from tests.trace.events import HOST, OFFSET, VM, Gate, acked, alone, batch, begin

BETA = "beta"


def story() -> Gate:
    """Alone, protected for three epochs (the last of which is not committed), alone again."""
    gate = Gate()
    gate.tell(alone(gate.tick(), 0))
    for _ in range(3):
        gate.send()
        gate.free(gate.issued)
    gate.protect()
    for _ in range(3):
        gate.send()
        gate.send()
        gate.mark()
        gate.tick()
    gate.commit()
    gate.commit()
    gate.go_alone()
    gate.send()
    gate.free(gate.issued)
    return gate


def primary(gate: Gate) -> list[Event]:
    """What a trace on the primary makes of it."""
    journey = Journey(begin())
    for moment, thing in gate.told:
        record = isinstance(thing, bytes)
        journey.feed(batch(0, *(() if record else (thing,))), [thing] if record else [])  # type: ignore[arg-type,list-item]
        assert moment
    return journey.finish()


def backup(gate: Gate, late: int = 0) -> list[Event]:
    """What a trace on the backup has: each epoch whole there a moment before its acknowledgement arrives."""
    said = [thing for _, thing in gate.told if isinstance(thing, notes.Acked)]
    told: list[Event] = [notes.Happened(at_ns=OFFSET + 1, vm=VM, host=BETA, event="sync-begin", fields={"term": 1})]
    told += [notes.Committed(at_ns=one.at_ns + OFFSET - 3 + late, vm=VM, host=BETA, term=one.term, epoch=one.epoch)
             for one in said]
    return [*told, notes.Happened(at_ns=OFFSET + gate.now + 1, vm=VM, host=BETA, event="peer-down", fields={})]


def ends(*hosts: str, **lost: int) -> list[notes.End]:
    gone = {"lost_frames": 0, "lost_notes": 0, **lost}
    return [notes.End(at_ns=OFFSET, host=host, frames=0, cause="", **gone) for host in hosts]


def captured(events: list[Event], *others: Event, hosts: tuple[str, ...] = (HOST,), **lost: int) -> Capture:
    whole = sorted([*events, *others], key=lambda event: event.at_ns)
    return Capture(whole, [begin(host=host) for host in hosts], ends(*hosts, **lost))


def judged(*args: Any, **kwargs: Any) -> tuple[str, list[str]]:
    document = audit(captured(*args, **kwargs))
    msgspec.json.encode(document)
    assert document["verdict"] in text(document)
    return document["verdict"], [one["why"] for one in document["offending"]]


def changed(events: list[Event], point: Point, name: str, **fields: Any) -> list[Event]:
    """The same, with fields of one frame's event at one point changed."""
    found = [event for event in events if isinstance(event, Frame) and (event.point, event.name) == (point, name)]
    assert len(found) == 1
    return [msgspec.structs.replace(event, **fields) if event is found[0] else event for event in events]


def test_what_is_right_is_proven() -> None:
    document = audit(captured(primary(story())))
    assert document["verdict"] == PROVEN and not document["offending"] and not document["gaps"]
    assert document["by_cause"] == {"ack": 4, "alone": 6} and document["frames_out"] == 10


def test_both_hosts_together() -> None:
    gate = story()
    assert judged(primary(gate), *backup(gate), hosts=(HOST, BETA)) == (PROVEN, [])


def test_a_frame_that_left_before_its_acknowledgement() -> None:
    events = primary(story())
    acked = next(event.at_ns for event in events if isinstance(event, notes.Acked))
    early = changed(events, Point.RELEASED, "1.2", at_ns=acked - 5)
    word, why = judged(early)
    assert word == REFUTED and why == ["epoch 1 was not acknowledged, and the VM did not run alone"]


def test_a_frame_that_is_told_late() -> None:
    """Live, a frame may be told after what happened after it: its own time decides."""
    made = Audit()
    made.begin(begin())
    for event in (alone(OFFSET, 0, False), acked(OFFSET + 100, 1)):
        made.event(msgspec.structs.replace(event, host=HOST))
    for at in (150, 50):
        made.event(Frame(at_ns=OFFSET + at, host=HOST, vm=VM, point=Point.RELEASED, cause="ack", term=1, epoch=1, seq=1,
                         number=1))
    assert [one.frame.at_ns - OFFSET for one in made.offences] == [50]


def test_an_acknowledgement_that_never_came() -> None:
    events = [event for event in primary(story()) if not (isinstance(event, notes.Acked) and event.epoch == 2)]
    word, why = judged(events)
    assert word == REFUTED and len(why) == 2 and "epoch 2" in why[0]


def test_a_frame_sent_under_protection_that_pretends_to_be_of_no_epoch() -> None:
    events = primary(story())
    first = next(event.at_ns for event in events if isinstance(event, notes.Alone) and not event.alone)
    word, why = judged(changed(events, Point.RELEASED, "1.1", epoch=0, seq=4, at_ns=first + 1))
    assert word == REFUTED and why == ["it belongs to no epoch, and the VM did not run alone"]


def test_a_frame_beyond_the_guards_own_boundary() -> None:
    word, why = judged(changed(primary(story()), Point.RELEASED, "1.1", committed=3))
    assert word == REFUTED and why == ["the guard let it pass, although only frames up to 3 were committed"]


def test_a_backup_that_had_not_all_of_it() -> None:
    gate = story()
    word, why = judged(primary(gate), *backup(gate, late=50), hosts=(HOST, BETA))
    assert word == REFUTED and len(why) == 4 and all(one.startswith(f"{BETA} had all of epoch") for one in why)


def test_a_backup_that_never_had_it() -> None:
    gate = story()
    missing = [event for event in backup(gate) if not (isinstance(event, notes.Committed) and event.epoch == 2)]
    word, why = judged(primary(gate), *missing, hosts=(HOST, BETA))
    assert word == REFUTED and set(why) == {f"{BETA} did not have all of epoch 2"}


def test_a_backup_of_which_nothing_is_known_proves_nothing_against_it() -> None:
    gate = story()
    some = [event for event in backup(gate) if event.at_ns < OFFSET + 200]
    assert judged(primary(gate), *some, hosts=(HOST, BETA)) == (PROVEN, [])


def test_clocks_of_two_hosts_may_differ() -> None:
    gate = story()
    capture = captured(primary(gate), *backup(gate, late=30), hosts=(HOST, BETA))
    capture.begins[1] = begin(host=BETA, boot="another")
    assert audit(capture, clock_ns=100)["verdict"] == PROVEN
    assert audit(capture, clock_ns=1)["verdict"] == REFUTED


def spoken(host: str, at: int, under: int) -> Frame:
    return Frame(at_ns=OFFSET + at, host=host, vm=VM, point=Point.ANNOUNCED, under=under)


@pytest.mark.parametrize("late", [spoken(HOST, 9000, 1), spoken(HOST, 9000, 2)], ids=["older term", "same term"])
def test_two_speakers(late: Frame) -> None:
    word, why = judged(primary(story()), spoken(BETA, 8000, 2), late, hosts=(HOST, BETA))
    assert word == REFUTED and len(why) == 1 and why[0].startswith("two speakers") and "beta had begun" in why[0]


def test_one_after_the_other_may_speak() -> None:
    after = [spoken(BETA, 8000, 2), spoken(BETA, 8100, 2), spoken(HOST, 9000, 3)]
    assert judged(primary(story()), *after, hosts=(HOST, BETA)) == (PROVEN, [])


def test_epochs_are_counted_anew_with_each_protection() -> None:
    """An acknowledgement of the last protection's epoch 1 is none of this one's, though the term is the same."""
    gate = story()
    gate.term = 1
    gate.protect()
    gate.send()
    gate.mark()
    gate.free(gate.issued)
    word, why = judged(primary(gate))
    assert word == REFUTED and why == ["epoch 1 was not acknowledged, and the VM did not run alone"]


@pytest.mark.parametrize("what", ["lost_frames", "lost_notes"])
def test_a_trace_with_gaps_proves_nothing(what: str) -> None:
    document = audit(captured(primary(story()), **{what: 3}))
    assert document["verdict"] == UNDECIDED and "3 events were lost" in document["gaps"][0]


def test_a_lost_note_is_no_offence() -> None:
    events = [event for event in primary(story()) if not (isinstance(event, notes.Acked) and event.epoch == 2)]
    document = audit(captured(events, lost_notes=1))
    assert document["verdict"] == UNDECIDED and "2 frames of which nobody says why they left" in document["gaps"][1]


def test_an_offence_counts_in_spite_of_gaps() -> None:
    assert judged(changed(primary(story()), Point.RELEASED, "1.1", committed=3), lost_frames=3)[0] == REFUTED


def test_what_shows_nothing_or_has_no_end() -> None:
    assert judged([])[0] == UNDECIDED
    cut = captured(primary(story()))
    cut.ends = []
    assert audit(cut)["verdict"] == UNDECIDED
