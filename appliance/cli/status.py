# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast status`: what the service of this host does now, for people, and the exit code that scripts read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from appliance.cli.call import Call
from appliance.cli.screen import PLAIN, Screen, row, size
from appliance.errors import Unreachable
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

SAFE = {"protected", "standby"}
DOWN = {"failed", "fenced"}
AGAIN = 2.0
"""Seconds between two looks where nothing else is said."""


def exit_code(status: dict[str, Any]) -> Exit:
    """OK: every VM has its replica; DEGRADED: one has none at the moment; FAILED: one does not run here."""
    phases = {vm.get("phase") for vm in status.get("vms", {}).values()}
    if phases & DOWN:
        return Exit.FAILED
    return Exit.OK if phases <= SAFE else Exit.DEGRADED


def render(status: dict[str, Any], screen: Screen = PLAIN) -> str:
    """The status on one screen: a line for the host, a few for each VM; ends without a newline."""
    return "\n".join(_lines(status, screen))


def _run(call: Call) -> int:
    """Once, or again and again until it is interrupted."""
    reply = call.ask(timeout=5.0)
    if call.args.watch is None:
        call.show(reply, lambda: render(reply, call.screen))
        return exit_code(reply)
    while True:
        text = partial(_gone, reply) if "error" in reply else partial(render, reply, call.screen)
        call.screen.repaint(reply, text)
        time.sleep(call.args.watch)
        reply = _again(call)


def _again(call: Call) -> dict[str, Any]:
    """Another look; a service that has ended may come back."""
    try:
        return call.ask(timeout=5.0)
    except Unreachable as error:
        return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


def _gone(reply: dict[str, Any]) -> str:
    return f"{reply['error']['message']}\n  waiting for it to come back"


def _lines(status: dict[str, Any], screen: Screen) -> Iterator[str]:
    peer = status.get("peer", {})
    rhythm = f"lease {peer.get('lease_ms')} ms  silence {peer.get('timeout_ms')} ms"
    yield row(f"host {status.get('host')}", f"peer {peer.get('name')}", screen.paint(peer.get("state")), rhythm)
    for link in peer.get("links", []):
        detail = str(link.get("reason", "")) if link.get("rtt_us") is None else f"rtt {link['rtt_us']} us"
        yield row(f"  {link.get('name')}", screen.paint(link.get("state")), detail)
    if arbiter := status.get("arbiter"):
        silent = arbiter.get("reachable") is False
        word = screen.paint("down") if silent else str(arbiter.get("reason"))
        yield row(f"arbiter {arbiter.get('kind')}", word, str(arbiter.get("reason")) if silent else "")
    if rules := status.get("rules"):
        yield from _rules_lines(rules, screen)
    for name, vm in sorted(status.get("vms", {}).items()):
        yield from _vm_lines(name, vm, screen)


def _vm_lines(name: str, vm: dict[str, Any], screen: Screen) -> Iterator[str]:
    progress = f"term {vm.get('term')}  epoch {vm.get('epoch')}  committed {vm.get('committed')}"
    yield row(f"vm {name}", str(vm.get("role")), screen.paint(vm.get("phase")), progress)
    if vm.get("reason"):
        yield row("  reason", str(vm["reason"]))
    if there := vm.get("peer"):
        yield row("  there", str(there.get("role")), screen.paint(there.get("phase")), f"term {there.get('term')}")
    if vm.get("paused"):
        yield row("  unprotected", f"by the operator, until holdfast protect {name}")
    conditions = vm.get("conditions") or {}
    if conditions.get("unfit"):
        yield row("  peer unfit", str(conditions["unfit"]))
    for problem in vm.get("capacity") or []:
        if problem.get("level") == "warn":
            yield row("  warning", f"{problem.get('reason')}: {problem.get('remedy')}")
    if detour := vm.get("detour"):
        told = {"near": f"its traffic goes through the peer's uplink, over {detour.get('link')}",
                "far": "it speaks through the uplink of this host"}
        yield row("  detour", told.get(str(detour.get("end")), f"none: {detour.get('reason')}"))
    if vm.get("qemu_pid"):
        yield row("  qemu", f"pid {vm['qemu_pid']}", f"tracker {vm.get('tracker') or '-'}")
    if sync := vm.get("sync"):
        done = f"{size(sync.get('done_bytes'))} of {size(sync.get('total_bytes'))}"
        left = "" if sync.get("left_s") is None else f"{sync['left_s']} s left"
        what = f"{sync['what']} round" if sync.get("what") else "round"
        moved = "" if sync.get("moved_bytes") is None else f"moved {size(sync['moved_bytes'])}"
        yield row("  sync", f"{what} {sync.get('round')}", done, f"{size(sync.get('bytes_per_s'))}/s", left, moved)
    yield from _disk_lines(vm.get("disks") or {}, screen)
    yield from _volume_lines(vm.get("volumes") or [])
    if gate := vm.get("gate"):
        held = f"held {gate.get('held_frames')} frames, {size(gate.get('held_bytes'))}"
        counts = f"released {gate.get('released_frames')}  overflow {gate.get('overflow_frames')}"
        yield row("  gate", str(gate.get("backend", "")), held, counts)
    if guard := vm.get("guard"):
        counts = "  ".join(f"{key} {guard.get(f'{key}_frames')}" for key in ("early", "closed", "expired", "unstamped"))
        passed = f"passed {guard.get('passed_frames')} frames"
        yield row("  guard", "open" if guard.get("open") else "closed", passed, counts)
    pause = vm.get("pause_ms") or {}
    if pause.get("max"):
        figures = "  ".join(f"{key} {pause.get(key)}" for key in ("last", "p50", "p99", "max"))
        yield row("  pause", figures + " ms", f"in flight {vm.get('in_flight')} epochs")


def _disk_lines(disks: dict[str, Any], screen: Screen) -> Iterator[str]:
    for disk in disks.get("disks", []):
        told = {True: str(disks.get("standing")), False: "not whole"}.get(disk.get("whole"), "-")
        told = "left" if disk.get("left") else told
        waits = f"{size(disk['to_copy_bytes'])} to copy" if disk.get("to_copy_bytes") else ""
        form = f"{size(disk.get('size_bytes'))} {disk.get('format')}"
        yield row(f"  disk {disk.get('name')}", told, form, str(disk.get("path")), waits)
        if trouble := disk.get("trouble"):
            what = "the VM waits for it" if disk.get("vm_waits") else "the VM goes on with the other host's copy"
            yield row("  trouble", str(trouble), what)
    if disks.get("unapplied_bytes"):
        yield row("  unapplied", f"{size(disks['unapplied_bytes'])} acknowledged and not in the images yet")


def _volume_lines(volumes: list[dict[str, Any]]) -> Iterator[str]:
    for volume in volumes:
        waits = f"{size(volume['withheld_bytes'])} withheld" if volume.get("withheld_bytes") else ""
        yield row(f"  volume {volume.get('name')}", "does not answer" if volume.get("trouble") else "shared",
                  size(volume.get("size_bytes")), str(volume.get("at")), waits)
        if trouble := volume.get("trouble"):
            yield row("  trouble", str(trouble), "tried again every second")


def _rules_lines(rules: dict[str, Any], screen: Screen) -> Iterator[str]:
    drops = rules.get("drops", {})
    counts = [(f"{vm} {why}", count) for vm, kinds in sorted(drops.get("vms", {}).items())
              for why, count in kinds.items() if count]
    counts += [("strangers", drops["strangers"])] if drops.get("strangers") else []
    told = "dropped: " + "  ".join(f"{what} {count}" for what, count in counts) if counts else ""
    word = "loaded" if rules.get("loaded") else "off" if rules.get("mode") == "off" else "not loaded"
    yield row("rules", screen.paint(word) if word == "not loaded" else word, str(rules.get("reason") or told))


VERBS = (
    Verb(
        "status", "what the service of this host does now",
        text="""For each VM: its role and phase on this host, its term and epoch, what the gate holds, what the guard
saw. On a terminal -w draws it anew every so often; elsewhere it prints one JSON object a line each time.""",
        arguments=(Argument("--watch", f"again every so often; every {AGAIN:g} s if no time is given",
                            kind=Kind.SECONDS, short="-w", bare=AGAIN),),
        examples=(("holdfast status", "is all well? The exit code says it too"),
                  ("holdfast status -j | jq .vms.web1.phase", "one figure for a script"),
                  ("holdfast status -w 1", "watch a takeover")),
        access=Access.GROUP, service="status", schema="holdfast.status/1", run=_run,
        exits={Exit.OK: "every VM is protected here, or its replica is",
               Exit.DEGRADED: "a VM is not protected now", Exit.FAILED: "a VM failed here, or this host is fenced"},
    ),
)
