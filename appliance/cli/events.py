# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast events`: what is so now, then what happens; each event as a line for people or as one for programs."""

from __future__ import annotations

import json
import time
from typing import Any

from appliance.cli.call import Call
from appliance.cli.screen import PLAIN, Screen
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

STATE, END_OF_STATE, LOST = "state", "end-of-state", "lost"
_TOLD = ("at", "event", "vm", "seq", "what", "schema")
"""What a line says in its first columns, or not at all."""


def line(event: dict[str, Any], screen: Screen = PLAIN) -> str:
    """One event for people: when, what about, what; then the rest, the reason last and in words."""
    name, clock = str(event.get("event")), _clock(event.get("at"))
    if name == END_OF_STATE:
        return f"{clock}  {'-' * 8}  so it is now; what follows happens"
    about = event.get("vm") or event.get("link") or event.get("peer") or event.get("host") or event.get("what") or "-"
    if name == STATE:
        return f"{clock}  {about!s:<8}  {_state(event, screen)}".rstrip()
    if name == LOST:
        lost = screen.paint("lost", "bad")
        return f"{clock}  {'-':<8}  {lost}  {event.get('count')} events: this reader was too slow"
    if "was" in event:  # where a VM stands, here or on the peer
        whose = "" if name != "peer-phase" else "there "
        phase = screen.paint(event.get("phase") or name)
        text = f"{whose}{event.get('role')} {phase}, was {event['was']}  term {event.get('term')}"
        return "  ".join(filter(None, [clock, f"{about!s:<8}", text, str(event.get("reason") or "")]))
    rest = [_said(key, value) for key, value in event.items()
            if key not in (*_TOLD, "reason") and value not in ("", None, False, about)]
    cells = [clock, f"{about!s:<8}", screen.paint(name), " ".join(rest), str(event.get("reason") or "")]
    return "  ".join(filter(None, cells))


def _clock(at: object) -> str:
    """The time of day, to a millisecond."""
    if not isinstance(at, int | float):
        return "-"
    milliseconds = round(at * 1e3)
    return f"{time.strftime('%H:%M:%S', time.localtime(milliseconds // 1000))}.{milliseconds % 1000:03d}"


def _said(key: str, value: object) -> str:
    if isinstance(value, dict):
        return " ".join(_said(inner, one) for inner, one in value.items() if one not in ("", None, False))
    return key if value is True else f"{key}={value}"


def _state(event: dict[str, Any], screen: Screen) -> str:
    match event.get("what"):
        case "vm":
            where = f"{event.get('role')} {screen.paint(event.get('phase'))}  term {event.get('term')}"
            peer = event.get("peer")
            there = f"  there {peer.get('role')} {screen.paint(peer.get('phase'))}" if isinstance(peer, dict) else ""
            return f"{where}{there}  {event.get('reason')}"
        case "arbiter":
            return f"{event.get('kind')}  {event.get('reason')}"
        case "host":
            reasons = (event.get("condition") or {}).get("reasons") or []
            return "this host" + (f": {'; '.join(map(str, reasons))}" if reasons else "")
    return "  ".join(filter(None, [screen.paint(event.get("state")), str(event.get("reason") or "")]))


def _run(call: Call) -> int:
    now = call.args.now
    for event in call.stream(vm=call.args.vm or "", now=now):
        if call.screen.json:
            call.screen.say(json.dumps({"schema": call.verb.schema, **event}))
        else:
            call.screen.say(line(event, call.screen))
    return Exit.OK


VERBS = (
    Verb(
        "events", "what is so now, then what happens, as it happens",
        text="""First the state of the host, its peer, its links and its VMs, then a marker, then each change with its
cause, until it is interrupted. With -j each is a JSON object on a line of its own; docs/events.md has their fields. A
reader that is too slow hears how many events it lost, and what is so then.""",
        arguments=(Argument("vm", "only what is about this VM", kind=Kind.VM, optional=True),
                   Argument("--now", "end at the marker", kind=Kind.FLAG)),
        examples=(("holdfast events", "watch both hosts while something is repaired"),
                  ("holdfast events -j --now", "what is so now, for a program")),
        access=Access.GROUP, service="events", schema="holdfast.event/1", run=_run,
    ),
)
