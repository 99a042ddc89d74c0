# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs that read events and say something about them: `trace epochs`, `explain`, `audit`, `plot`."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from appliance.cli.call import Call
from appliance.errors import TimedOut, UsageError
from appliance.exits import Exit
from appliance.trace import audit as audits
from appliance.trace import capture, notes
from appliance.trace import epochs as epochs_
from appliance.trace import explain as explains
from appliance.trace.event import Event, Frame, Point
from appliance.trace.expression import Expression
from appliance.trace.select import Select
from appliance.trace.show import interruptible, live, split

_KEPT = 200_000  # events that may be looked back at for one packet
_EVERYTHING = Select(frozenset(Point))


def _files(call: Call) -> list[Path]:
    return [Path(name) for name in call.args.read.split(",")] if call.args.read else []


# --- epochs ---


def epochs(call: Call) -> int:
    """The verb."""
    shown = 0
    with contextlib.ExitStack() as stack, contextlib.suppress(KeyboardInterrupt), interruptible():
        begins, events = _told(call, stack)
        vms = {one.vm for begin in begins for one in begin.vms if call.args.vm in (None, one.vm)}
        several = {"hosts": len({begin.host for begin in begins}) > 1, "vms": len(vms) > 1}
        for epoch in _epochs(events, call.args.vm, rest=bool(call.args.read)):
            if call.screen.json:
                call.screen.say(json.dumps({"schema": "holdfast.trace-epochs/1", **msgspec.to_builtins(epoch)}))
            else:
                if not shown:
                    call.screen.say(epochs_.head(**several))
                call.screen.say(epochs_.line(epoch, **several))
            shown += 1
            if shown == call.args.count:
                break
    return Exit.OK


def _told(call: Call, stack: contextlib.ExitStack) -> tuple[list[notes.Begin], Iterable[list[Event]]]:
    """How it began, and what happened: out of captures, or live."""
    if files := _files(call):
        found = capture.load(files)
        return found.begins, [found.events]
    until = None if call.args.duration is None else time.monotonic() + call.args.duration
    session = stack.enter_context(live(call, call.args.vm or "", _EVERYTHING, None, frames=False))
    return [session.begin], session.events(until)


def _epochs(told: Iterable[list[Event]], vm: str | None, *, rest: bool) -> Iterator[epochs_.Epoch]:
    made = epochs_.Epochs()
    for events in told:
        for event in events:
            if vm in (None, event.vm):
                yield from made.feed(event)
    yield from made.rest() if rest else ()


# --- explain ---


def explain(call: Call) -> int:
    """The verb."""
    wanted = call.args.packet
    if files := _files(call):
        if wanted == "next":
            raise UsageError("next is for a live trace", "name a packet of the capture: EPOCH.SEQ")
        found = capture.load(files)
        vms = [vm.vm for begin in found.begins for vm in begin.vms]
        vm, _ = split(call, call.args.words, vms)
        events: list[Event] = found.events
        packet = explains.find(events, wanted[0], wanted[1], vm)
    else:
        vm, expression = split(call, call.args.words)
        events, packet = _await(call, vm, expression)
    document = explains.explain(events, packet)
    call.show(document, lambda: explains.text(document))
    return Exit.OK


def _await(call: Call, vm: str, expression: Expression | None) -> tuple[list[Event], Frame]:
    """Trace until the packet's way has ended. Raises TimedOut."""
    wanted = call.args.packet
    seen: deque[Event] = deque(maxlen=_KEPT)
    select = Select(frozenset(Point), vm, expression=expression, here=expression is not None and not expression.fits)
    named: tuple[int, int, str] | None = None
    with interruptible(), live(call, vm, select, expression) as session:
        for events in session.events(time.monotonic() + call.args.timeout):
            for event in select.of(events):
                seen.append(event)
                if not isinstance(event, Frame) or not event.number:
                    continue
                if wanted == "next" and named is None and event.point is Point.HELD:
                    named = (event.epoch, event.seq, event.vm)
                if wanted != "next" and (event.epoch, event.seq) == wanted:
                    named = (*wanted, event.vm)
                if named == (event.epoch, event.seq, event.vm) and event.point is not Point.HELD:
                    return list(seen), event
    name = "the next packet" if wanted == "next" else f"packet {wanted[0]}.{wanted[1]}"
    raise TimedOut(f"{name} has not passed within {call.args.timeout:g} s",
                   "a packet that has passed is found in a capture alone: -r FILE")


# --- a picture ---


def plot(call: Call) -> int:
    """The verb."""
    from appliance.trace import plot as plots

    if not call.args.files:
        raise UsageError("a picture is drawn from captures", "name the files: holdfast trace -w FILE makes one")
    found = capture.load([Path(name) for name in call.args.files])
    document = plots.draw(found, Path(call.args.out), getattr(call.args, "from"), call.args.to)
    hosts = (f"{host}: {what['frames']} frames, {what['epochs']} epochs" for host, what in document["hosts"].items())
    call.show(document, lambda: f"{document['file']}: {document['seconds']} s; {'; '.join(hosts)}")
    return Exit.OK


# --- audit ---


def audit(call: Call) -> int:
    """The verb."""
    files = [Path(name) for name in call.args.files]
    if files and call.args.live:
        raise UsageError("an audit is of captures, or live", "leave out the files, or --live")
    document = audits.audit(capture.load(files), round(call.args.clock * 1e9)) if files else _live_audit(call)
    call.show(document, lambda: audits.text(document))
    return {audits.PROVEN: Exit.OK, audits.REFUTED: Exit.FAILED}.get(document["verdict"], Exit.DEGRADED)


def _live_audit(call: Call) -> dict[str, Any]:
    until = None if call.args.duration is None else time.monotonic() + call.args.duration
    made = audits.Audit()
    told = 0
    points = Select(frozenset((Point.RELEASED, Point.REPLAYED, Point.ANNOUNCED)))
    with live(call, "", points, None) as session:
        made.begin(session.begin)
        call.screen.note(f"auditing {session.begin.host}; Ctrl-C ends it")
        with contextlib.suppress(KeyboardInterrupt), interruptible():
            for events in session.events(until):
                made.trusts_notes = not session.journey.lost_notes
                for event in events:
                    made.event(event)
                for one in made.offences[told:]:
                    call.screen.note(audits.line(audits.offending(one)))
                told = len(made.offences)
        journey = session.journey
        lost = journey.lost_frames + journey.lost_notes
        made.settle(1 << 63)
        gaps = [f"{lost} events were lost"] if lost else []
        if session.ended:
            gaps.append(f"the service ended: {session.ended}")
        return audits.verdict(made, [session.begin.host], gaps)
