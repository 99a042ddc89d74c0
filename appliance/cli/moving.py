# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator orders about hosts: a VM moves, a host is drained or kept out."""

from __future__ import annotations

import argparse
from typing import Any

from appliance.cli.call import Call
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

_VM = Argument("vm", "which VM", kind=Kind.VM)
_HOST = Argument("host", "which host of the pair", kind=Kind.HOST)


def _moved(reply: dict[str, Any], call: Call) -> str:
    return f"{reply['vm']}: moved from {reply['from']} to {reply['to']} in {reply['ms']} ms"


def _drained(reply: dict[str, Any], call: Call) -> str:
    state = "drained" if reply["drained"] else "in use again"
    vms = (f"  {vm}: {result}" for vm, result in sorted(reply["vms"].items()))
    return "\n".join([f"{reply['host']}: {state}", *vms])


def _all_moved(reply: dict[str, Any]) -> Exit:
    return Exit.OK if set(reply["vms"].values()) <= {"moved"} else Exit.DEGRADED


def _fenced(reply: dict[str, Any], call: Call) -> str:
    vms = (f"  {name}: {vm['phase']}, term {vm['term']}" for name, vm in sorted(reply["vms"].items()))
    return "\n".join([f"{reply['host']}: {reply['result']}", *vms])


def _fence_question(args: argparse.Namespace) -> str | None:
    if args.lift:
        return None
    if args.off:
        return f"If {args.host} is alive after all, two hosts speak and what clients were told is lost."
    return f"What {args.host} runs ends there at once, and goes on only if the other host has a replica."


VERBS = (
    Verb(
        "switchover", "move a VM to the other host; its clients lose nothing",
        text="""The VM is paused, its last epoch committed, all that it sent goes out, then the other host goes on. It
takes a VM that is protected and a host that can carry it; otherwise nothing is done. Works on either host.""",
        arguments=(_VM,), examples=(("holdfast switchover web1", "to the other host, wherever it runs now"),),
        access=Access.ROOT, service="switchover", schema="holdfast.switchover/1", render=_moved,
    ),
    Verb(
        "drain", "move all VMs away from a host, for its maintenance",
        text="""None moves to it by itself until it is undone. It still holds replicas, and still takes over when the
other host dies: stop its service before you take it down. A host whose service starts anew is no longer drained.""",
        arguments=(_HOST, Argument("--undo", "VMs may come to it again; none moves by this", kind=Kind.FLAG)),
        examples=(("holdfast drain alpha && holdfast wait gone", "on alpha: then it may be rebooted"),
                  ("holdfast drain alpha --undo", "it may have VMs again")),
        access=Access.ROOT, service="drain", schema="holdfast.drain/1", render=_drained, code=_all_moved,
        exits={Exit.DEGRADED: "a VM stays, and the answer says why"},
    ),
    Verb(
        "fence", "keep a host out: silent at once, until the fence is lifted",
        text="""The host shuts its fronts, ends its VMs and replicas, writes that down and stays out, over restarts
too. What it ran is taken over if the other host has a whole replica.

A host that cannot be reached cannot be told. With --off your word stands for the arbiter's: this host goes on alone,
takes over or starts the VMs. Cut the other's power first: if it is alive after all, two hosts speak.""",
        arguments=(_HOST, Argument("--lift", "let it in again", kind=Kind.FLAG),
                   Argument("--off", "it cannot be reached, and I have made sure that it has no power",
                            kind=Kind.FLAG)),
        examples=(("holdfast fence beta", "beta misbehaves: out with it"),
                  ("holdfast fence beta --off", "beta burned down and nobody could decide: go on here"),
                  ("holdfast fence beta --lift", "it is repaired")),
        access=Access.ROOT, service="fence", schema="holdfast.fence/1", render=_fenced, unsafe=_fence_question,
    ),
)
