# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened to the VMs of a pair, as either host remembers it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from appliance.cli.screen import Screen, table
from appliance.registry import Access, Argument, Kind, Verb

HEADS = ("WHEN", "VM", "TERM", "HOST", "WHAT", "SILENCE", "GRANT", "LOAD", "FENCE", "FRAME", "DARK", "RESYNC", "RESULT",
         "CAUSE")
_RIGHT = "ttrttrrrrrrrtt"
_GOOD = ("protected", "standby")
_BAD = ("failed", "interrupted")


def render(reply: dict[str, Any], screen: Screen) -> str:
    """A line for each entry, oldest first; below it, what is missing."""
    rows = [_row(entry, screen) for entry in reply.get("entries", [])]
    lines = [table(HEADS, rows, _RIGHT)] if rows else ["nothing has happened that is remembered"]
    return "\n".join([*lines, *_missing(reply)])


def _row(entry: dict[str, Any], screen: Screen) -> tuple[str, ...]:
    took = entry.get("ms", {})
    load = [took.get(step) for step in ("record", "load", "hand_over") if took.get(step) is not None]
    steps = (took.get("silence"), took.get("grant"), sum(load) if load else None, took.get("fence"),
             took.get("first_frame"), took.get("dark"), took.get("resync"))
    at = float(entry.get("detected_at") or 0)
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) + f".{int(at % 1 * 1000):03d}"
    result = str(entry.get("result"))
    kind = "good" if result in _GOOD else "bad" if result in _BAD else "changing"
    cause = str(entry.get("cause", "")) + (f"; {entry['note']}" if entry.get("note") else "")
    return (when, str(entry.get("vm")), str(entry.get("term")), str(entry.get("host")), str(entry.get("kind")),
            *map(_duration, steps), screen.paint(result, kind), cause)


def _duration(milliseconds: object) -> str:
    if not isinstance(milliseconds, int | float):
        return "-"
    return f"{milliseconds / 1000:.1f}s" if milliseconds >= 10_000 else f"{milliseconds:.0f}ms"


def _missing(reply: dict[str, Any]) -> Iterator[str]:
    for name, host in sorted(reply.get("hosts", {}).items()):
        if not host.get("reachable", True):
            yield f"{name} does not tell: {host.get('reason')}"
        elif host.get("disk") not in (None, "ok"):
            yield f"{name}: its history is not on disk: {host['disk']}"
        if host.get("damaged_lines"):
            yield f"{name}: {host['damaged_lines']} lines of its history cannot be read"


VERBS = (
    Verb(
        "history", "what happened to the VMs: starts, takeovers, switchovers, losses, with their times",
        text="""Both hosts' entries, oldest first, each from the view of the HOST that wrote it: a takeover has one
on the host that took over, and one on the host that lost the VM if that lived.

SILENCE: since the peer's last sign of life, when it was noticed. GRANT: until the arbiter's answer. LOAD: until the VM
ran again, or stood still to be handed over. FENCE: until it might speak. FRAME: until its first frame went out. DARK:
from noticing to speaking. RESYNC: the copy that made it protected again.

It is kept on disk on each host, bounded, and survives crashes.""",
        arguments=(Argument("vm", "of this VM alone", kind=Kind.VM, optional=True),
                   Argument("--limit", "so many entries at most; 50 if not given", kind=Kind.COUNT, short="-n",
                            default=50)),
        examples=(("holdfast history", "what went on last night"), ("holdfast history -j web1", "for programs")),
        access=Access.GROUP, service="history", schema="holdfast.history/1",
        render=lambda reply, call: render(reply, call.screen),
    ),
)
