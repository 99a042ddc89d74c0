# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a VM is to be protected: `protect` and `unprotect`, also known as `resume` and `pause`."""

from __future__ import annotations

import time
from typing import Any

from appliance.cli import waiting
from appliance.cli.call import Call
from appliance.cli.screen import size
from appliance.errors import HoldfastError
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

PATIENCE = 120.0
"""Seconds."""
_VM = Argument("vm", "which VM", kind=Kind.VM)


def _protect(call: Call) -> int:
    begun = time.monotonic()
    reply = call.ask(vm=call.args.vm)
    if call.args.no_wait:
        call.show({**reply, "waited_ms": 0}, f"{call.args.vm}: to be protected")
        return Exit.OK
    waiting.until(call, "protected", call.args.vm, call.args.timeout, lambda: copied(call))
    seconds = time.monotonic() - begun
    call.show({**reply, "waited_ms": round(seconds * 1e3)}, f"{call.args.vm}: protected after {seconds:.1f} s")
    return Exit.OK


def copied(call: Call) -> None:
    """How far the first copy is, as the host knows that makes it."""
    try:
        sync = call.ask("status", timeout=2.0)["vms"][call.args.vm].get("sync")
    except (HoldfastError, KeyError):
        return
    if sync:
        left = "" if sync.get("left_s") is None else f", {sync['left_s']:g} s left"
        call.screen.progress(f"{call.args.vm}: {size(sync['done_bytes'])} of {size(sync['total_bytes'])} copied{left}")


def _unprotected(reply: dict[str, Any], call: Call) -> str:
    return f"{reply['vm']}: not protected until holdfast protect {reply['vm']}"


VERBS = (
    Verb(
        "protect", "protect a VM again, and wait until it is",
        text="""Undoes unprotect. The other host gets a first copy of the VM's memory while the VM runs; how far it is
is told meanwhile. A VM that is protected already stays so.""",
        arguments=(_VM, Argument("--no-wait", "only want it: return at once", kind=Kind.FLAG),
                   Argument("--timeout", f"wait no longer; {PATIENCE:g} s if not given. It is copied all the same",
                            kind=Kind.SECONDS, default=PATIENCE)),
        examples=(("holdfast protect web1", "after holdfast unprotect web1"),),
        access=Access.ROOT, service="protect", schema="holdfast.protect/1", run=_protect, aliases=("resume",),
        exits={Exit.OK: "it is protected; with --no-wait: it is to be", Exit.TIMEOUT: "it was not in time"},
    ),
    Verb(
        "unprotect", "run a VM without a replica until it is to be protected again",
        text="""The VM runs on at full speed and its output is not held; its replica is dropped. If its host dies, the
VM is gone. Both hosts are told, and it stands until it is protected again, or until the services of both hosts were
started anew.""",
        arguments=(_VM,), examples=(("holdfast unprotect web1", "for a bulk load that needs all the speed there is"),),
        access=Access.ROOT, service="unprotect", schema="holdfast.protect/1", render=_unprotected, aliases=("pause",),
        unsafe=lambda args: f"While it is not protected, {args.vm} is lost if its host dies.",
    ),
)
