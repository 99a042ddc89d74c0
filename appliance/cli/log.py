# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of a running service: its levels and its last lines."""

from __future__ import annotations

from typing import Any

from appliance.cli.call import Call
from appliance.registry import Access, Argument, Kind, Verb

_LEVELS = ("debug", "info", "warning", "error", "default")


def _levels(reply: dict[str, Any], call: Call) -> str:
    lines = [f"level {reply['level']}"]
    lines += [f"  {name:<14} {level}" for name, level in reply["modules"].items() if name in reply["own"]]
    lines.append(f"modules: {', '.join(reply['modules'])}")
    if reply["lost_lines"]:
        lines.append(f"{reply['lost_lines']} lines were lost: standard error is not read fast enough")
    return "\n".join(lines)


def _tail(reply: dict[str, Any], call: Call) -> str:
    return "\n".join(reply["lines"])


VERBS = (
    Verb(
        "log set", "change what a running service logs",
        text="""Until it is changed again, or the service is started anew; host.log has the level it starts with.
With MODULE for that part alone, whatever the others log; `default` takes a module's own level away.""",
        arguments=(Argument("level", "the least severe message that is logged", choices=_LEVELS),
                   Argument("module", "a part of the service, as `holdfast log levels` names them", optional=True)),
        examples=(("holdfast log set debug peer", "what do the two hosts say to each other?"),
                  ("holdfast log set default peer", "enough of that")),
        access=Access.ROOT, service="log-set", schema="holdfast.log/1", render=_levels,
    ),
    Verb(
        "log levels", "what a running service logs, part by part",
        examples=(("holdfast log levels", "which modules there are"),),
        access=Access.GROUP, service="log", schema="holdfast.log/1", render=_levels,
    ),
    Verb(
        "log tail", "the last lines that a running service logged",
        text="The service remembers the last 1000, wherever its standard error goes.",
        arguments=(Argument("--lines", "so many; 20 if not given", kind=Kind.COUNT, short="-n", default=20),),
        examples=(("holdfast log tail -n 100", "without knowing where the log is"),),
        access=Access.GROUP, service="log-tail", schema="holdfast.log-tail/1", render=_tail,
    ),
)
