# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast wait`: until the VMs are where somebody wants them. Heard from events, not asked again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from appliance.cli.call import Call
from appliance.cli.events import END_OF_STATE, STATE
from appliance.core import SPEAKING, Phase, Role
from appliance.errors import HoldfastError, TimedOut, Unreachable, UsageError
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

DEFAULT = 60.0
"""Seconds."""
AGAIN = 0.2
"""Seconds between two tries to reach a service that does not answer."""
_PHASES = frozenset(Phase)
_NOT_HERE = frozenset({Phase.WAITING, Phase.JOINING, Phase.RECEIVING, Phase.STANDBY, Phase.FAILED, Phase.FENCED})
Standing = dict[str, tuple[str, str]]
"""Of each VM its role and phase on this host."""
STATES: dict[str, Callable[[str, str], bool]] = {
    "protected": lambda role, phase: phase in (Phase.PROTECTED, Phase.STANDBY),
    "primary": lambda role, phase: role == Role.PRIMARY and phase in SPEAKING,
    "gone": lambda role, phase: phase in _NOT_HERE,
}


def until(call: Call, state: str, vm: str, timeout: float, tick: Callable[[], None] | None = None) -> Standing:
    """Wait until `vm`, or every VM if it is "", is in `state`; returns where they stand.

    `tick` is called about once a second meanwhile. Raises TimedOut, UsageError (no such VM) or what the service
    answers.
    """
    deadline, found = time.monotonic() + timeout, {}  # type: float, Standing
    while True:
        pause = min(deadline, time.monotonic() + 1.0) if tick else deadline
        trouble: HoldfastError | None = None
        try:
            found = _listen(call, state, vm, pause, found)
            return found
        except TimeoutError:
            if tick and time.monotonic() < deadline:
                tick()
        except Unreachable as error:  # it may be starting
            trouble = error
            time.sleep(max(0.0, min(AGAIN, deadline - time.monotonic())))
        if time.monotonic() >= deadline:
            stands = "; ".join(f"{name} is {role} {phase}" for name, (role, phase) in sorted(found.items()))
            raise TimedOut(f"not {state} within {timeout:g} s: {trouble.message if trouble else stands}",
                           trouble.hint if trouble else "holdfast status gives the reason")


def _listen(call: Call, state: str, vm: str, deadline: float, found: Standing) -> Standing:
    """Raises TimeoutError at `deadline` (monotonic), with what is so far known in `found`."""
    whole = False
    for event in call.stream("events", until=deadline, vm=vm):
        name, about = event.get("event"), str(event.get("vm") or "")
        if name == STATE and event.get("what") == "vm":
            found[about] = str(event.get("role")), str(event.get("phase"))
        elif name in _PHASES and about:
            found[about] = str(event.get("role")), str(name)
            call.screen.progress(f"{about}: {event.get('role')}, {name}: {event.get('reason')}")
        whole = whole or name == END_OF_STATE
        if whole and vm and vm not in found:
            raise UsageError(f"there is no VM {vm[:64]!r}", "holdfast status names them")
        if whole and all(STATES[state](*stands) for stands in found.values()):
            return found
    raise Unreachable("the service ended", "see its log")


def document(schema: str, state: str, found: Standing, seconds: float) -> dict[str, Any]:
    vms = {name: {"role": role, "phase": phase} for name, (role, phase) in sorted(found.items())}
    return {"schema": schema, "state": state, "waited_ms": round(seconds * 1e3), "vms": vms}


def _run(call: Call) -> int:
    begun = time.monotonic()
    found = until(call, call.args.state, call.args.vm or "", call.args.timeout)
    reply = document(call.verb.schema, call.args.state, found, time.monotonic() - begun)
    call.show(reply, "\n".join(f"{name}: {role} {phase}" for name, (role, phase) in sorted(found.items())))
    return Exit.OK


VERBS = (
    Verb(
        "wait", "until VMs are protected, run here, or do not run here any more",
        text="""protected: the VM has a whole replica. primary: it runs on this host and speaks. gone: it does not run
on this host, and nothing that still arrives here is forwarded to it: the host may go down. Without a VM all of them
are meant. A service that does not answer is waited for too.""",
        arguments=(Argument("state", "what to wait for", choices=tuple(STATES)),
                   Argument("vm", "this one; all if not given", kind=Kind.VM, optional=True),
                   Argument("--timeout", f"give up after this; {DEFAULT:g} s if not given", kind=Kind.SECONDS,
                            default=DEFAULT)),
        examples=(("holdfast wait protected --timeout 5min", "before the next step of a rolling update"),
                  ("holdfast drain alpha && holdfast wait gone", "on alpha: then it may be rebooted")),
        access=Access.GROUP, service="events", schema="holdfast.wait/1", run=_run,
        exits={Exit.OK: "it is so", Exit.TIMEOUT: "it was not so in time"},
    ),
)
