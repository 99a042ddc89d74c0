# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a VM is to be protected: `protect` and `unprotect`, also known as `resume` and `pause`."""

from __future__ import annotations

from typing import Any

from appliance.cli.call import Call
from appliance.registry import Access, Argument, Kind, Verb

_VM = Argument("vm", "which VM", kind=Kind.VM)


def _told(reply: dict[str, Any], call: Call) -> str:
    return f"{reply['vm']}: {'not to be protected' if reply['paused'] else 'to be protected'}"


VERBS = (
    Verb(
        "protect", "protect a VM again",
        text="""Undoes unprotect.""",
        arguments=(_VM,), examples=(("holdfast protect web1", "after holdfast unprotect web1"),),
        access=Access.ROOT, service="protect", schema="holdfast.protect/1", render=_told, aliases=("resume",),
    ),
    Verb(
        "unprotect", "run a VM without a replica until it is to be protected again",
        text="""The VM runs on at full speed and its output is not held; its replica is dropped. If its host dies, the
VM is gone. Both hosts are told, and it stands until it is protected again, or until the services of both hosts were
started anew.""",
        arguments=(_VM,), examples=(("holdfast unprotect web1", "for a bulk load that needs all the speed there is"),),
        access=Access.ROOT, service="unprotect", schema="holdfast.protect/1", render=_told, aliases=("pause",),
        unsafe=lambda args: f"While it is not protected, {args.vm} is lost if its host dies.",
    ),
)
