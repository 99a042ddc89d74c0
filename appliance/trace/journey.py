# SPDX-License-Identifier: GPL-2.0-or-later
"""Joins what the kernel tells of frames with what the service says of epochs: pure, records and notes in, events out.

The service says up to which moment it has said everything (`Batch.at_ns`). Only what is older is joined: until then a
note may be missing that says to which epoch a frame belongs. So what an event says is never a guess, and events come
a few hundredths of a second late.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from appliance.trace import notes
from appliance.trace.event import KERNEL, Event, Frame, Point, Waits
from ebpf import trace

_REMEMBERED = 8192  # epochs
_HELD = 65536  # frames; the gate holds a quarter of that
_FROM_GATE = (Point.HELD, Point.OVERFLOW)
_FROM_GUARD = (Point.RELEASED, Point.DROPPED, Point.FENCED)
_TAG_AT = 12


@dataclass
class _Life:
    """When the steps of an epoch were, in monotonic ns; None for what is not known. `last`: its last frame's number."""

    last: int = 0
    marked: int | None = None
    sent: int | None = None
    acked: int | None = None


_Held = tuple[int, bytes, int, int]
"""When a frame was held, its beginning, its bytes, and the segments that it stands for."""


@dataclass
class _Vm:
    """What is known of one VM on this host."""

    name: str
    term: int = 0
    ends: list[int] = field(default_factory=list)
    """Numbers of the last frame of each span, ascending; what is beyond the last belongs to the open span."""
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    """Term, epoch and number of the frame before the first, of each span."""
    epoch: int = 0
    """The last that has ended."""
    alone: list[tuple[int, bool]] = field(default_factory=list)
    """Since when it runs alone, or does not."""
    lives: dict[tuple[int, int], _Life] = field(default_factory=dict)
    held: OrderedDict[int, _Held] = field(default_factory=OrderedDict)
    itself: list[notes.Again] = field(default_factory=list)

    def end(self, number: int, term: int, epoch: int) -> None:
        """The open span ends with frame `number`, and was this epoch (0: alone)."""
        before = self.ends[-1] if self.ends else 0
        if number >= before:
            self.ends.append(number)
            self.spans.append((term, epoch, before))
        if len(self.ends) > 2 * _REMEMBERED:
            del self.ends[:_REMEMBERED], self.spans[:_REMEMBERED]

    def place(self, number: int) -> tuple[int, int, int]:
        """Term, epoch and place in it of a frame."""
        at = bisect_left(self.ends, number)
        if at < len(self.ends):
            term, epoch, before = self.spans[at]
        else:
            alone = self.alone[-1][1] if self.alone else True
            term, epoch, before = self.term, 0 if alone else self.epoch + 1, self.ends[-1] if self.ends else 0
        return term, epoch, number - before if epoch else number

    def follows(self, number: int) -> tuple[int, int]:
        """Term and epoch of the span after that of a frame; 0 for no epoch. What the VM sent alone and is still held
        when it becomes protected leaves with the first epoch."""
        at = bisect_left(self.ends, number) + 1
        return self.spans[at][:2] if at < len(self.spans) else (0, 0)

    def life(self, term: int, epoch: int) -> _Life:
        found = self.lives.get((term, epoch))
        if found is None:
            found = self.lives[term, epoch] = _Life()
            if len(self.lives) > 2 * _REMEMBERED:
                for key in list(self.lives)[:_REMEMBERED]:
                    del self.lives[key]
        return found

    def is_alone(self, at: int) -> bool:
        place = bisect_right(self.alone, (at, True)) - 1
        return place >= 0 and self.alone[place][1]

    def keep(self, number: int, held: _Held) -> None:
        self.held[number] = held
        if len(self.held) > _HELD:
            self.held.popitem(last=False)

    def forget(self, number: int) -> None:
        """Frames up to this number are out."""
        while self.held and next(iter(self.held)) <= number:
            self.held.popitem(last=False)


class Journey:
    """The frames of one trace on one host. What is not wanted of `points` need not become an event."""

    def __init__(self, begin: notes.Begin, points: frozenset[Point] = frozenset(Point)) -> None:
        self.host, self._offset = begin.host, notes.offset(begin)
        self._vms = {vm.vm: _Vm(vm.vm, vm.term) for vm in begin.vms}
        self._sources = {vm.source: self._vms[vm.vm] for vm in begin.vms}
        for vm in begin.vms:
            for note in vm.past:
                self._learn(note)
                if isinstance(note, notes.Marked) and note.epoch <= vm.acked:
                    self._vms[vm.vm].life(note.term, note.epoch).acked = note.at_ns
        self._needed = points | ({Point.RELEASED} if points & {Point.REPLAYED, Point.ANNOUNCED} else frozenset())
        self._waiting: list[tuple[int, int, bytes | Event]] = []
        self._arrived = 0
        self._settled = self._lost = 0
        self.lost_frames = self.lost_notes = 0

    def hear(self, batch: notes.Batch) -> None:
        """What the service says."""
        for note in batch.notes:
            self._learn(note)
            self._wait(note.at_ns, note)
        self.lost_frames = max(self.lost_frames, batch.lost_frames)
        self.lost_notes = max(self.lost_notes, batch.lost_notes)
        self._settled = max(self._settled, batch.at_ns)

    def add(self, at_ns: int, event: Event) -> None:
        """Something else that happened at that (monotonic) moment; a note in monotonic time, or a frame as it is."""
        self._wait(at_ns, event)

    def events(self, records: Iterable[bytes] = (), known_until: int = 0) -> list[Event]:
        """What is settled by now, in the order of time; what is older than `known_until` is taken as it is known."""
        self._take(records)
        return self._events(max(self._settled, known_until))

    def feed(self, batch: notes.Batch, records: Iterable[bytes] = ()) -> list[Event]:
        """Both."""
        self.hear(batch)
        return self.events(records)

    def finish(self, records: Iterable[bytes] = ()) -> list[Event]:
        """The rest: the service will say nothing more."""
        self._take(records)
        return self._events(1 << 63)

    def _take(self, records: Iterable[bytes]) -> None:
        for record in records:
            if record[0] == trace.VERSION:
                self._wait(int.from_bytes(record[16:24], sys.byteorder), record)

    def _wait(self, at: int, thing: bytes | Event) -> None:
        self._arrived += 1
        self._waiting.append((at, self._arrived, thing))

    def _events(self, until: int) -> list[Event]:
        self._waiting.sort()
        at = bisect_right(self._waiting, until, key=lambda one: one[0])
        due, self._waiting = self._waiting[:at], self._waiting[at:]
        events: list[Event] = []
        for _, _, thing in due:
            if isinstance(thing, bytes):
                event = self._frame(thing)
                if event is not None:
                    events.append(event)
            elif isinstance(thing, Frame):
                events.append(thing)
            else:
                events += self._noted(thing)
        return events

    # --- notes ---

    def _learn(self, note: notes.Note) -> None:
        """What later frames are judged by. Notes of a VM come in the order in which they were made."""
        vm = self._vms[note.vm]
        match note:
            case notes.Marked():
                vm.end(note.number, note.term, note.epoch)
                vm.term, vm.epoch = note.term, note.epoch
                life = vm.life(note.term, note.epoch)
                life.marked, life.last = note.at_ns, note.number
            case notes.Sent():
                vm.life(note.term, note.epoch).sent = note.at_ns
            case notes.Acked():
                vm.life(note.term, note.epoch).acked = note.at_ns
            case notes.Alone():
                if note.alone:  # what an epoch had that never ended
                    was_alone = not vm.alone or vm.alone[-1][1]
                    vm.end(note.number, vm.term, 0 if was_alone else vm.epoch + 1)
                else:
                    vm.end(note.number, vm.term, 0)
                    vm.epoch = 0
                vm.alone.append((note.at_ns, note.alone))
            case notes.Again():
                if note.until_ns and vm.itself and not vm.itself[-1].until_ns:
                    vm.itself.pop()  # it is over
                vm.itself.append(note)
                del vm.itself[:-256]
            case notes.Happened() if isinstance(term := note.fields.get("term"), int):
                vm.term = max(vm.term, term)

    def _noted(self, note: notes.Note) -> list[Event]:
        """A note as an event, with the frames that it is about."""
        vm = self._vms[note.vm]
        moved = {"at_ns": note.at_ns + self._offset, "host": self.host}
        if isinstance(note, notes.Again):
            if not note.until_ns:
                return []  # said again when it is over
            moved["until_ns"] = note.until_ns + self._offset
        if isinstance(note, notes.Taken):
            moved["stopped_ns"] = note.stopped_ns + self._offset
        shown = msgspec.structs.replace(note, **moved)
        if isinstance(note, notes.Released):
            vm.forget(vm.life(note.term, note.epoch).last)
        if isinstance(note, notes.Dropped):
            numbers = sorted(number for number in vm.held if note.first <= number <= note.last)
            return [shown, *(self._discarded(vm, number, note) for number in numbers)]
        if isinstance(note, notes.Copies):
            return [msgspec.structs.replace(shown, frames=[]), *(
                Frame(at_ns=note.at_ns + self._offset, host=self.host, vm=vm.name, point=Point(note.point),
                      cause=note.cause, term=note.term, epoch=note.epoch, size=copy.len, snap=copy.snap,
                      lost_before=self._lost)
                for copy in note.frames)]
        return [shown]

    def _discarded(self, vm: _Vm, number: int, note: notes.Dropped) -> Frame:
        held_at, snap, size, segments = vm.held.pop(number)
        term, epoch, seq = vm.place(number)
        return Frame(at_ns=note.at_ns + self._offset, host=self.host, vm=vm.name, point=Point.DISCARDED,
                     cause=note.cause, term=term, epoch=epoch, seq=seq, number=number, size=size, segments=segments,
                     hold_ns=note.at_ns - held_at, lost_before=self._lost, snap=snap)

    # --- frames ---

    def _frame(self, record: bytes) -> Frame | None:
        """The event that a record comes to; None for one that is not wanted or makes no sense."""
        (_, told, source, _, segments, length, proto, tci, at, number, boundary, held_bytes, under,
         lost) = trace.RECORD.unpack_from(record)
        vm = self._sources.get(source)
        if vm is None or told not in KERNEL:
            return None
        point, cause = KERNEL[told]
        if lost > self._lost:
            self._lost = lost
        snap = record[trace.RECORD.size:]
        if proto:
            snap = snap[:_TAG_AT] + proto.to_bytes(2, "big") + tci.to_bytes(2, "big") + snap[_TAG_AT:]
            length += 4
        numbered = 0 < number < 1 << 63
        if point is Point.HELD and numbered:
            vm.keep(number, (at, snap, length, segments or 1))
        if point not in self._needed:
            return None
        frame = Frame(at_ns=at + self._offset, host=self.host, vm=vm.name, point=point, cause=cause, term=vm.term,
                      size=length, segments=segments or 1, lost_before=lost, snap=snap)
        if point in _FROM_GUARD:
            frame.under, frame.committed = under, boundary
            if point is Point.RELEASED and vm.itself and (itself := _itself(vm, at)):
                frame.point, frame.cause, numbered = Point(itself.point), "", False
        if numbered:
            frame.number = number
            frame.term, frame.epoch, frame.seq = vm.place(number)
            if point in _FROM_GUARD:
                self._judge(vm, frame, at)
        if point in _FROM_GATE:
            frame.held_bytes = held_bytes
            frame.held_frames = number - 1 - boundary if numbered else None
        return frame

    def _judge(self, vm: _Vm, frame: Frame, at: int) -> None:
        """How long a frame that reached the guard was held, on what it waited, and why it was let go."""
        term, epoch = frame.term, frame.epoch
        if not epoch and not vm.is_alone(at):
            term, epoch = vm.follows(frame.number)
        life = vm.lives.get((term, epoch), _UNKNOWN)
        if frame.point is Point.RELEASED:
            acked = life.acked is not None and life.acked <= at
            frame.cause = "ack" if acked else "alone" if vm.is_alone(at) else "none"
        held = vm.held.get(frame.number)
        if held is None:
            return
        ended = sent = committed = begun = held[0]
        frame.hold_ns = at - begun
        if epoch:
            ended = _within(begun, life.marked, at)
            sent = _within(ended, life.sent, at)
            committed = _within(sent, life.acked, at)
        frame.waits = Waits(ended - begun, sent - ended, committed - sent, at - committed)


_UNKNOWN = _Life()


def _within(earliest: int, moment: int | None, latest: int) -> int:
    """The moment, not before and not after these; the latest when it is not known."""
    return latest if moment is None or moment > latest else moment if moment > earliest else earliest


def _itself(vm: _Vm, at: int) -> notes.Again | None:
    """What this host did at that moment, if it sent frames by itself."""
    return next((note for note in reversed(vm.itself) if note.at_ns <= at <= (note.until_ns or at)), None)
