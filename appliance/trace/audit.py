# SPDX-License-Identifier: GPL-2.0-or-later
"""Proves or refutes, from what a trace saw, that no frame left before its commit, and that one host spoke at a time.

Three kinds of evidence are held against each other: the kernel's word on each frame that passed the guard, the
primary's word on when its epoch was acknowledged, and, where the backup was traced too, its word on when it had all of
it. What was lost proves nothing: a trace with gaps that shows no offence is undecided.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.trace import notes
from appliance.trace.capture import Capture
from appliance.trace.decode import summary
from appliance.trace.event import OUT, Event, Frame, Point
from appliance.trace.words import clock, ms

SCHEMA = "holdfast.trace-audit/1"
PROVEN, REFUTED, UNDECIDED = "proven", "refuted", "undecided"
CLOCK_NS = 5_000_000
"""How far apart the clocks of two hosts may be: what is nearer than this is no offence. One kernel has one clock."""
LATE_NS = 1_000_000_000
"""For so long a backup's word on an epoch is waited for."""
_REMEMBERED = 8192  # epochs
_Key = tuple[str, int, int]  # VM, term, epoch


@dataclass(frozen=True)
class Offence:
    """A frame that must not have left as it did."""

    frame: Frame
    why: str


@dataclass
class Audit:
    """Fed with events in the order of time. `clock_ns`: how far apart the clocks of different hosts may be."""

    clock_ns: int = 0
    trusts_notes: bool = True
    """Were no notes lost? Else what was not said may have been."""
    until: dict[str, int] = field(default_factory=dict)
    """By host: the last moment of which its trace tells."""
    frames_out: int = 0
    unjudged: int = 0
    by_cause: dict[str, int] = field(default_factory=dict)
    offences: list[Offence] = field(default_factory=list)
    _acked: dict[str, dict[_Key, int]] = field(default_factory=dict)
    """By host: when each epoch was acknowledged."""
    _committed: dict[_Key, tuple[int, str]] = field(default_factory=dict)
    """When each epoch was whole on its backup, and which host that is."""
    _alone: dict[tuple[str, str], bool] = field(default_factory=dict)
    _speaks: dict[str, tuple[int, str, int]] = field(default_factory=dict)
    _left: deque[tuple[Frame, int]] = field(default_factory=deque)
    """Frames that left with an epoch that was acknowledged: still to be held against what the backup says."""

    def begin(self, begin: notes.Begin) -> None:
        """What was known when a trace began: epochs that were committed before it."""
        for vm in begin.vms:
            for note in vm.past:
                self._hear(begin.host, note)
                if isinstance(note, notes.Marked) and note.epoch <= vm.acked:
                    self._acked[begin.host][vm.vm, note.term, note.epoch] = 0
            if vm.whole:
                self._committed[vm.vm, vm.term, vm.whole] = (0, begin.host)

    def event(self, event: Event) -> None:
        self.settle(event.at_ns)
        if not isinstance(event, Frame):
            self._hear(event.host, event)
        elif event.point in OUT:
            self._passed(event)

    def _hear(self, host: str, note: notes.Note) -> None:
        acked = self._acked.setdefault(host, {})
        match note:
            case notes.Acked():
                acked[note.vm, note.term, note.epoch] = note.at_ns
                _bound(acked)
            case notes.Committed():
                self._committed[note.vm, note.term, note.epoch] = (note.at_ns, host)
                _bound(self._committed)
            case notes.Alone():
                self._alone[host, note.vm] = note.alone
                if not note.alone:  # epochs are counted anew
                    _forget(acked, note.vm)
            case notes.Happened() if note.event == "sync-begin":
                _forget(self._committed, note.vm)

    # --- one frame that has reached the network ---

    def _passed(self, frame: Frame) -> None:
        self.frames_out += 1
        self._one_speaker(frame)
        if frame.point is not Point.RELEASED:
            self._count(frame.point)  # of an epoch that was committed before the takeover, or this host's own
            return
        self._count(frame.cause)
        if frame.committed is not None and frame.number > frame.committed:
            self._offend(frame, f"the guard let it pass, although only frames up to {frame.committed} were committed")
        alone = self._alone.get((frame.host, frame.vm), frame.cause == "alone")
        # What was sent alone and still held when the VM became protected leaves with the first epoch.
        epoch = frame.epoch if frame.epoch or alone else 1
        acked = self._acked.get(frame.host, {}).get((frame.vm, frame.term, epoch))
        if acked is not None and acked <= frame.at_ns:
            self._left.append((frame, epoch))
        elif not alone:
            if self.trusts_notes:
                what = f"epoch {frame.epoch} was not acknowledged" if frame.epoch else "it belongs to no epoch"
                self._offend(frame, f"{what}, and the VM did not run alone")
            else:
                self.unjudged += 1

    def _one_speaker(self, frame: Frame) -> None:
        """Whoever speaks under a newer term is the only one from then on."""
        if not frame.under:
            return
        term, host, since = self._speaks.get(frame.vm, (0, "", 0))
        if frame.under > term:
            self._speaks[frame.vm] = (frame.under, frame.host, frame.at_ns)
        elif frame.host != host and frame.at_ns > since + self.clock_ns:
            late = ms(frame.at_ns - since)
            self._offend(frame, f"two speakers: it left under term {frame.under}, {late} ms after {host} had begun to "
                                f"speak under term {term}")

    def settle(self, now_ns: int) -> None:
        """Judge what left so long ago that the backup's word on it would be known."""
        while self._left and self._left[0][0].at_ns + self.clock_ns + LATE_NS < now_ns:
            self._judge(*self._left.popleft())

    def _judge(self, frame: Frame, epoch: int) -> None:
        key: _Key = (frame.vm, frame.term, epoch)
        committed = self._committed.get(key)
        if committed is not None and committed[0] > frame.at_ns + self.clock_ns:
            self._offend(frame, f"{committed[1]} had all of epoch {epoch} only "
                                f"{ms(committed[0] - frame.at_ns)} ms later")
        if committed is None and self.trusts_notes:
            before = self._committed.get((frame.vm, frame.term, epoch - 1))
            # That host was traced then, and epochs come to it in order.
            if before is not None and frame.at_ns + self.clock_ns <= self.until.get(before[1], 0):
                self._offend(frame, f"{before[1]} did not have all of epoch {epoch}")

    def _count(self, cause: str) -> None:
        self.by_cause[cause] = self.by_cause.get(cause, 0) + 1

    def _offend(self, frame: Frame, why: str) -> None:
        self.offences.append(Offence(frame, why))


def _bound(told: dict[_Key, Any]) -> None:
    """Of what was long ago nothing more will be asked."""
    if len(told) > 2 * _REMEMBERED:
        for key in list(told)[:_REMEMBERED]:
            del told[key]


def _forget(told: dict[_Key, Any], vm: str) -> None:
    for key in [key for key in told if key[0] == vm]:
        del told[key]


def audit(capture: Capture, clock_ns: int = CLOCK_NS) -> dict[str, Any]:
    """The verdict on captures of one or both hosts."""
    made = Audit(0 if len({begin.boot for begin in capture.begins}) == 1 else clock_ns,
                 not any(end.lost_notes for end in capture.ends))
    for begin in capture.begins:
        made.begin(begin)
    made.until = {event.host: event.at_ns for event in capture.events}
    for event in capture.events:
        made.event(event)
    made.settle(1 << 63)
    gaps = []
    if not capture.begins:
        gaps.append("the capture does not say how it began")
    elif not capture.whole:
        gaps.append("the capture does not say how it ended")
    if capture.lost:
        gaps.append(f"{capture.lost} events were lost")
    return verdict(made, [begin.host for begin in capture.begins], gaps)


def verdict(made: Audit, hosts: Sequence[str], gaps: list[str]) -> dict[str, Any]:
    """The document. What was judged so far decides, and `gaps`: why it may not be all."""
    if made.unjudged:
        gaps = [*gaps, f"{made.unjudged} frames of which nobody says why they left"]
    if not made.frames_out:
        gaps = [*gaps, "no frame left"]
    word = REFUTED if made.offences else UNDECIDED if gaps else PROVEN
    return {"schema": SCHEMA, "verdict": word, "hosts": sorted(set(hosts)), "frames_out": made.frames_out,
            "by_cause": dict(sorted(made.by_cause.items())), "offences": len(made.offences), "gaps": gaps,
            "clock_tolerance_ns": made.clock_ns, "offending": [offending(one) for one in made.offences[:1000]]}


def offending(one: Offence) -> dict[str, Any]:
    frame = one.frame
    return {"at_ns": frame.at_ns, "host": frame.host, "vm": frame.vm, "packet": frame.name, "term": frame.term,
            "number": frame.number, "bytes": frame.size, "summary": summary(frame.snap), "why": one.why}


def line(one: dict[str, Any]) -> str:
    """An offence, for people."""
    packet = f"{one['packet']} ({one['bytes']} bytes, {one['summary']})"
    return f"{clock(one['at_ns'])} {one['host']} {one['vm']} {packet}: {one['why']}"


def text(document: dict[str, Any]) -> str:
    """The verdict, for people."""
    lines = [line(one) for one in document["offending"]]
    if document["offences"] > len(lines):
        lines.append(f"and {document['offences'] - len(lines)} more")
    causes = ", ".join(f"{count} {cause}" for cause, count in document["by_cause"].items())
    hosts = " and ".join(document["hosts"]) or "no host"
    left = f"{document['frames_out']} frames left ({causes or 'none'})"
    lines.append(f"{document['verdict']}: {left}, traced on {hosts}; {document['offences']} must not have")
    if document["gaps"]:
        lines.append(f"  not the whole truth: {'; '.join(document['gaps'])}")
    return "\n".join(lines)
