# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast health`: how well both hosts are, as people read it and as the exit code that scripts read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.cli.screen import PLAIN, Screen
from appliance.exits import Exit
from appliance.registry import Access, Verb

_KINDS = {"ok": "good", "failed": "bad", "warn": "changing"}


def exit_code(reply: dict[str, Any]) -> Exit:
    """OK: both hosts are whole as far as is known; DEGRADED: a warning, or a host does not tell; FAILED: a failure."""
    states = {host.get("state") for host in reply.get("hosts", {}).values()}
    if "failed" in states:
        return Exit.FAILED
    return Exit.OK if states <= {"ok"} else Exit.DEGRADED


def render(reply: dict[str, Any], screen: Screen = PLAIN) -> str:
    """A line for each host and one for each reading; ends without a newline."""
    hosts = sorted(reply.get("hosts", {}).items())
    return "\n".join(line for name, host in hosts for line in _host(name, host, screen))


def _host(name: str, host: dict[str, Any], screen: Screen) -> Iterator[str]:
    told = "; ".join(str(reason) for reason in host.get("reasons", []))
    state = str(host.get("state"))
    if not host.get("reachable", True):
        age = host.get("age_s")
        told += f"; {age:g} s ago it was {host.get('last_state')}" if age is not None else "; nothing is known of it"
    yield f"host {name:<10} {_paint(state, screen)}{'  ' + told if told else ''}"
    readings = host.get("readings", [])
    width = max((len(str(one.get("subject"))) for one in readings), default=0)
    for one in readings:
        subject, value = str(one.get("subject")), _value(one)
        detail = str(one.get("reason") or one.get("threshold") or "")
        state = _paint(f"{one.get('state')!s:<8}", screen)
        yield f"  {one.get('component')!s:<7} {subject:<{width}}  {state}{value:>14}  {detail}".rstrip()


def _value(one: dict[str, Any]) -> str:
    value, unit = one.get("value"), str(one.get("unit") or "")
    if not isinstance(value, int | float):
        return "-"
    if unit == "s" and abs(value) < 1:
        value, unit = value * 1e3, "ms"
    digits = 1 if abs(value) >= 100 else 2
    return f"{round(value, digits):.10g} {unit}".rstrip()


def _paint(word: str, screen: Screen) -> str:
    kind = _KINDS.get(word.strip())
    return screen.paint(word, kind) if kind else word


VERBS = (
    Verb(
        "health", "how well both hosts are, part by part",
        text="""Uplinks, links, disks, memory, processors, QEMU and clocks of both hosts: what was measured, and from
when on it is bad. A host that cannot be reached is unknown, with the state it had last.""",
        examples=(("holdfast health", "why did a VM move, or why does it not?"),),
        access=Access.GROUP, service="health", schema="holdfast.health/1",
        render=lambda reply, call: render(reply, call.screen), code=exit_code,
        exits={Exit.OK: "both hosts are well", Exit.DEGRADED: "a warning, or a host does not tell",
               Exit.FAILED: "a host is unfit for VMs"},
    ),
)
