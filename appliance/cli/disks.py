# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a VM that runs: `disk resize`, `disk add`, `disk remove`."""

from __future__ import annotations

import time
from typing import Any

from appliance.cli import waiting
from appliance.cli.call import Call
from appliance.cli.protecting import copied
from appliance.cli.screen import size
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb
from appliance.units import parse_size

PATIENCE = 120.0
"""Seconds until the VM is to be protected again."""
CHANGE = 120.0
"""Seconds for the change itself."""
_ARGUMENTS = (Argument("vm", "which VM", kind=Kind.VM), Argument("disk", "the name of the disk"))
_WAIT = (Argument("--no-wait", "return when the disk is changed: the VM may not be protected yet", kind=Kind.FLAG),
         Argument("--timeout", f"wait no longer until it is protected again; {PATIENCE:g} s if not given",
                  kind=Kind.SECONDS, default=PATIENCE))
_EXITS = {Exit.OK: "it is done on both hosts; unless --no-wait was given the VM is protected again",
          Exit.DEGRADED: "it could not be done, or the other host has not followed yet: the answer says why",
          Exit.TIMEOUT: "it is done, and the VM was not protected again in time"}


def _run(call: Call) -> int:
    begun = time.monotonic()
    args = {argument.key: getattr(call.args, argument.key) for argument in call.verb.arguments
            if argument not in _WAIT}
    reply = call.ask(timeout=CHANGE, **args)
    waits = reply["to_be_protected"] and not call.args.no_wait
    if waits:
        waiting.until(call, "protected", call.args.vm, call.args.timeout, lambda: copied(call))
    seconds = round(time.monotonic() - begun, 3)
    call.show({**reply, "protected": waits, "seconds": seconds}, _text(reply, f"; protected after {seconds:.1f} s"
                                                                       if waits else ""))
    return Exit.DEGRADED if reply["behind"] else Exit.OK


def _text(reply: dict[str, Any], end: str) -> str:
    detail = {"resized": f"has {size(reply.get('size_bytes'))} now", "added": f"added, {size(reply.get('size_bytes'))}",
              "removed": "removed"}[reply["result"]]
    line = f"{reply['vm']}: disk {reply['disk']} {detail}{end}"
    return f"{line}\n  {reply['peer']} does not follow yet: {reply['behind']}" if reply["behind"] else line


VERBS = (
    Verb(
        "disk resize", "enlarge a disk of a VM that runs, on both hosts",
        text="""The guest sees the new size at once; to use it is its own affair (growpart, resize2fs). An image that is
a file is enlarged; a block device must have the new size already, on both hosts. A size= in the configuration has to be
the new size, or to be left out. Smaller is refused.

The VM runs on alone meanwhile and is copied to the other host again; only what changed moves. Works on either host.""",
        arguments=(*_ARGUMENTS, Argument("size", "the new one, such as 40GiB", read=parse_size), *_WAIT),
        examples=(("holdfast disk resize web1 data 40GiB", "the disk is nearly full"),),
        access=Access.ROOT, service="disk-resize", schema="holdfast.disk/1", run=_run, exits=_EXITS,
    ),
    Verb(
        "disk add", "plug a disk into a VM that runs, on both hosts",
        text="""Make an image of the same size on both hosts, write the [[vm.NAME.disk]] section into the configuration
of both, then give this command on one. The files are read anew; of what has changed in them this disk alone counts. The
guest finds it as /dev/disk/by-id/virtio-NAME.

The VM runs on alone meanwhile and is copied to the other host again; of the other disks only what changed moves. A VM
that was started without disks gets its first one when the services of both hosts are started anew.""",
        arguments=(*_ARGUMENTS, *_WAIT),
        examples=(("holdfast disk add web1 data", "after its section was written on both hosts"),),
        access=Access.ROOT, service="disk-add", schema="holdfast.disk/1", run=_run, exits=_EXITS,
    ),
    Verb(
        "disk remove", "take a disk out of a VM that runs, on both hosts",
        text="""Unmount it in the guest, take its [[vm.NAME.disk]] section out of the configuration of both hosts, then
give this command on one. The guest is asked to let go of it; if it does not, that is told, and nothing has changed. The
images stay where they are.""",
        arguments=(*_ARGUMENTS, *_WAIT),
        examples=(("holdfast disk remove web1 data", "after its section was taken out on both hosts"),),
        access=Access.ROOT, service="disk-remove", schema="holdfast.disk/1", run=_run, exits=_EXITS,
    ),
)
