# SPDX-License-Identifier: GPL-2.0-or-later
"""The health of both hosts as people read it, and as the exit code that scripts read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.exits import Exit

_COLOURS = {"ok": "\033[32m", "failed": "\033[31m", "warn": "\033[33m"}
_RESET = "\033[0m"


def exit_code(reply: dict[str, Any]) -> Exit:
    """OK: both hosts are whole as far as is known; DEGRADED: a warning, or a host does not tell; FAILED: a failure."""
    states = {host.get("state") for host in reply.get("hosts", {}).values()}
    if "failed" in states:
        return Exit.FAILED
    return Exit.OK if states <= {"ok"} else Exit.DEGRADED


def render(reply: dict[str, Any], colour: bool = False) -> str:
    """A line for each host and one for each reading; ends without a newline."""
    hosts = sorted(reply.get("hosts", {}).items())
    return "\n".join(line for name, host in hosts for line in _host(name, host, colour))


def _host(name: str, host: dict[str, Any], colour: bool) -> Iterator[str]:
    told = "; ".join(str(reason) for reason in host.get("reasons", []))
    state = str(host.get("state"))
    if not host.get("reachable", True):
        age = host.get("age_s")
        told += f"; {age:g} s ago it was {host.get('last_state')}" if age is not None else "; nothing is known of it"
    yield f"host {name:<10} {_paint(state, colour)}{'  ' + told if told else ''}"
    readings = host.get("readings", [])
    width = max((len(str(one.get("subject"))) for one in readings), default=0)
    for one in readings:
        subject, value = str(one.get("subject")), _value(one)
        detail = str(one.get("reason") or one.get("threshold") or "")
        state = _paint(f"{one.get('state')!s:<8}", colour)
        yield f"  {one.get('component')!s:<7} {subject:<{width}}  {state}{value:>14}  {detail}".rstrip()


def _value(one: dict[str, Any]) -> str:
    value, unit = one.get("value"), str(one.get("unit") or "")
    if not isinstance(value, int | float):
        return "-"
    if unit == "s" and abs(value) < 1:
        value, unit = value * 1e3, "ms"
    digits = 1 if abs(value) >= 100 else 2
    return f"{round(value, digits):.10g} {unit}".rstrip()


def _paint(word: str, colour: bool) -> str:
    start = _COLOURS.get(word.strip()) if colour else None
    return f"{start}{word}{_RESET}" if start else word
