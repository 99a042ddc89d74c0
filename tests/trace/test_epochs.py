# SPDX-License-Identifier: GPL-2.0-or-later
"""One line for each epoch, put together from notes in whatever state they come."""

from __future__ import annotations

import msgspec

from appliance.trace import notes
from appliance.trace.epochs import Epoch, Epochs, head, line
from appliance.trace.event import Event
from tests.trace.events import HOST, VM, acked, alone, marked, released, sent


def taken(epoch: int, stopped: int) -> notes.Taken:
    return notes.Taken(at_ns=stopped + 60, vm=VM, term=1, epoch=epoch, stopped_ns=stopped, stop_ns=10, save_ns=30,
                       resume_ns=20, pages=7, bytes=2048, frames=3)


def fed(*said: Event) -> list[Epoch]:
    made = Epochs()
    return [epoch for note in said for epoch in made.feed(msgspec.structs.replace(note, host=HOST))] + made.rest()


def whole(epoch: int, at: int) -> list[Event]:
    return [marked(at + 10, epoch, 3 * epoch), taken(epoch, at), sent(at + 80, epoch), acked(at + 90, epoch),
            released(at + 95, epoch)]


def test_an_epoch_from_its_pause_to_the_last_of_its_frames() -> None:
    first, second = fed(*whole(1, 1000), *whole(2, 1500))
    assert (first.at_ns, first.length_ns, first.pause_ns) == (1000, None, 60)
    assert (first.stop_ns, first.save_ns, first.resume_ns) == (10, 30, 20)
    assert (first.transfer_ns, first.ack_ns, first.release_ns) == (70, 10, 5)
    assert (first.pages, first.bytes, first.frames, first.committed, first.under_way) == (7, 2048, 3, True, False)
    assert second.length_ns == 500
    assert len(head().split()) == len(line(second).split()) - 1, "a size has two words"
    assert line(second).split()[1:4] == ["2", "0.00", "0.00"]


def test_a_release_of_several_at_once() -> None:
    said = [note for note in (*whole(1, 1000), *whole(2, 1500)) if note != released(1095, 1)]
    assert [epoch.epoch for epoch in fed(*said)] == [1, 2]


def test_one_that_nobody_acknowledged() -> None:
    (lost,) = fed(*whole(1, 1000)[:3], alone(2000, 3))
    assert not lost.committed and not lost.under_way and lost.ack_ns is None
    assert line(lost).endswith("not committed")


def test_one_of_which_the_end_is_not_known() -> None:
    (open_,) = fed(*whole(1, 1000)[:3])
    assert open_.under_way and line(open_).endswith("under way")


def test_one_of_which_the_beginning_is_not_known() -> None:
    (late,) = fed(*whole(1, 1000)[3:])
    assert late.committed and late.pause_ns is None and late.release_ns == 5
    assert line(late, hosts=True, vms=True).split()[1:4] == [HOST, VM, "1"]


def test_what_is_under_way_is_bounded() -> None:
    made = Epochs()
    found = [epoch for number in range(5000) for epoch in made.feed(marked(number, number, number))]
    assert len(found) == 5000 - 1024 and len(made.rest()) == 1024
