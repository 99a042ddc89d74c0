# SPDX-License-Identifier: GPL-2.0-or-later
"""One packet's journey, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.cli.screen import size
from appliance.errors import BadData
from appliance.trace import notes
from appliance.trace.decode import summary
from appliance.trace.event import Event, Frame, Point
from appliance.trace.words import clock, ms

SCHEMA = "holdfast.trace-explain/1"
_REASONS = {
    "ack": "the backup has acknowledged its epoch",
    "alone": "the VM ran alone, rightfully: nothing had to be waited for",
    "none": "WITHOUT the backup's acknowledgement: this must not be",
    "limit": "the gate was at its limit: the VM sent more than may be held",
    "memory": "the kernel had no memory for its stamp",
    "early": "it lies beyond what is committed",
    "expired": "this host's lease had run out",
    "unstamped": "it never went through the gate",
    "no-term": "no term is open on this host: it may not speak",
    "shut": "the front is shut, or there is no VM behind it",
}
_WAITS = {"epoch": "for the end of its epoch", "transfer": "for the transfer", "ack": "for the acknowledgement",
          "release": "for its turn to leave"}


class Step(msgspec.Struct):
    """Something that happened to the packet, or to its epoch. `after_ns`: since the step before."""

    at_ns: int
    after_ns: int
    host: str
    what: str
    detail: str


def find(events: Sequence[Event], epoch: int, seq: int, vm: str = "") -> Frame:
    """The latest packet of that name. Raises BadData when there is none, with what there is."""
    named = [event for event in events if isinstance(event, Frame) and event.number
             and (event.epoch, event.seq) == (epoch, seq) and vm in ("", event.vm)]
    if not named:
        frames = [event for event in events if isinstance(event, Frame) and event.number and vm in ("", event.vm)]
        there = f"it has {frames[0].name} to {frames[-1].name}" if frames else "it has no packet of a VM"
        raise BadData(f"the trace has no packet {epoch}.{seq}", there)
    return named[-1]


def steps(events: Sequence[Event], packet: Frame) -> list[Step]:
    """The packet's way, and what happened to its epoch meanwhile."""
    found: list[tuple[int, str, str, str]] = []
    for event in events:
        if event.vm != packet.vm:
            continue
        if isinstance(event, Frame):
            if event.number == packet.number and event.term == packet.term and event.host == packet.host:
                found.append((event.at_ns, event.host, event.point, _detail(event)))
        elif packet.epoch and getattr(event, "epoch", None) == packet.epoch and \
                getattr(event, "term", None) == packet.term and (told := _told(event)):
            found.append((event.at_ns, event.host, *told))
        elif isinstance(event, notes.Dropped) and event.first <= packet.number <= event.last:
            found.append((event.at_ns, event.host, "thrown away", event.cause))
    found.sort(key=lambda one: one[0])
    made: list[Step] = []
    for at_ns, host, what, detail in found:
        made.append(Step(at_ns, at_ns - made[-1].at_ns if made else 0, host, what, detail))
    return made


def _detail(frame: Frame) -> str:
    if frame.point is Point.HELD and frame.held_bytes is not None:
        behind = f"behind {frame.held_frames} frames, {size(frame.held_bytes)}"
        return f"number {frame.number}, {behind if frame.held_frames else 'alone in the gate'}"
    return _REASONS.get(frame.cause, frame.cause)


def _told(note: Event) -> tuple[str, str] | None:
    match note:
        case notes.Marked():
            return "epoch ends", f"the VM is paused; frame {note.number} is its last"
        case notes.Taken():
            return "VM runs on", f"{note.pages} pages and {note.frames} frames, {size(note.bytes)}"
        case notes.Sent():
            return "transferred", "all of it is on the link"
        case notes.Acked():
            return "acknowledged", "the backup has all of it: it is committed"
        case notes.Committed():
            return "whole there", "the backup can go on from it"
    return None


def conclusion(packet: Frame, way: Sequence[Frame]) -> str:
    """One line: how it ended, and what it waited for."""
    last = way[-1]
    if last.point is Point.HELD:
        return "it is still held, as far as this trace goes"
    if last.hold_ns is None:
        return f"{last.point}; it was held before the trace began"
    if last.waits is None:
        return f"{last.point} after {ms(last.hold_ns)} ms"
    parts = [f"{ms(getattr(last.waits, name + '_ns'))} {text}" for name, text in _WAITS.items()
             if getattr(last.waits, name + "_ns")]
    return f"{last.point} after {ms(last.hold_ns)} ms: {', '.join(parts) or 'at once'}"


def explain(events: Sequence[Event], packet: Frame) -> dict[str, Any]:
    """The document; `text` makes lines of it."""
    way = [event for event in events if isinstance(event, Frame) and event.vm == packet.vm
           and event.number == packet.number and event.term == packet.term and event.host == packet.host]
    longest = way[-1].waits.longest() if way[-1].waits else None
    return {"schema": SCHEMA, "vm": packet.vm, "host": packet.host, "term": packet.term, "epoch": packet.epoch,
            "seq": packet.seq, "number": packet.number, "bytes": packet.size, "summary": summary(packet.snap),
            "hold_ns": way[-1].hold_ns, "waits": msgspec.to_builtins(way[-1].waits), "waited_most_for": longest,
            "steps": msgspec.to_builtins(steps(events, packet)), "conclusion": conclusion(packet, way)}


def text(document: dict[str, Any]) -> str:
    """As people read it."""
    lines = [f"{document['vm']} {document['epoch']}.{document['seq']} of term {document['term']}: "
             f"{document['bytes']} bytes, {document['summary']}"]
    for step in document["steps"]:
        when = f"{clock(step['at_ns'])} {'+' + ms(step['after_ns']):>10}"
        lines.append(f"  {when}  {step['host']:8} {step['what']:13} {step['detail']}".rstrip())
    lines.append(document["conclusion"])
    return "\n".join(lines)
