# SPDX-License-Identifier: GPL-2.0-or-later
"""The status of one service as people read it, and as the exit code that scripts read."""

from collections.abc import Iterator
from typing import Any

from appliance.exits import Exit

SAFE = {"protected", "standby"}
DOWN = {"failed"}
_COLOURS = {"good": "\033[32m", "bad": "\033[31m", "transitional": "\033[33m"}


def exit_code(status: dict[str, Any]) -> Exit:
    """OK: every VM has its replica; DEGRADED: one has none at the moment; FAILED: one does not run here."""
    phases = {vm.get("phase") for vm in status.get("vms", {}).values()}
    if phases & DOWN:
        return Exit.FAILED
    return Exit.OK if phases <= SAFE else Exit.DEGRADED


def render(status: dict[str, Any], *, colour: bool = False) -> str:
    """The status on one screen: a line for the host, a few for each VM; ends without a newline."""
    return "\n".join(_lines(status, colour))


def _lines(status: dict[str, Any], colour: bool) -> Iterator[str]:
    peer = status.get("peer", {})
    rhythm = f"lease {peer.get('lease_ms')} ms  silence {peer.get('timeout_ms')} ms"
    yield _row(f"host {status.get('host')}", f"peer {peer.get('name')}", _paint(peer.get("state"), colour), rhythm)
    for link in peer.get("links", []):
        detail = str(link.get("reason", "")) if link.get("rtt_us") is None else f"rtt {link['rtt_us']} us"
        yield _row(f"  {link.get('name')}", _paint(link.get("state"), colour), detail)
    if arbiter := status.get("arbiter"):
        silent = arbiter.get("reachable") is False
        word = _paint("down", colour) if silent else str(arbiter.get("reason"))
        yield _row(f"arbiter {arbiter.get('kind')}", word, str(arbiter.get("reason")) if silent else "")
    if rules := status.get("rules"):
        yield from _rules_lines(rules, colour)
    for name, vm in sorted(status.get("vms", {}).items()):
        yield from _vm_lines(name, vm, colour)


def _vm_lines(name: str, vm: dict[str, Any], colour: bool) -> Iterator[str]:
    progress = f"term {vm.get('term')}  epoch {vm.get('epoch')}  committed {vm.get('committed')}"
    yield _row(f"vm {name}", str(vm.get("role")), _paint(vm.get("phase"), colour), progress)
    if vm.get("reason"):
        yield _row("  reason", str(vm["reason"]))
    if vm.get("paused"):
        yield _row("  paused", "by the operator: it is not protected until it is resumed")
    conditions = vm.get("conditions") or {}
    if conditions.get("unfit"):
        yield _row("  peer unfit", str(conditions["unfit"]))
    for problem in vm.get("capacity") or []:
        if problem.get("level") == "warn":
            yield _row("  warning", f"{problem.get('reason')}: {problem.get('remedy')}")
    if detour := vm.get("detour"):
        told = {"near": f"its traffic goes through the peer's uplink, over {detour.get('link')}",
                "far": "it speaks through the uplink of this host"}
        yield _row("  detour", told.get(str(detour.get("end")), f"none: {detour.get('reason')}"))
    if vm.get("qemu_pid"):
        yield _row("  qemu", f"pid {vm['qemu_pid']}", f"tracker {vm.get('tracker') or '-'}")
    if sync := vm.get("sync"):
        done = f"{_bytes(sync.get('done_bytes'))} of {_bytes(sync.get('total_bytes'))}"
        left = "" if sync.get("left_s") is None else f"{sync['left_s']} s left"
        yield _row("  sync", f"round {sync.get('round')}", done, f"{_bytes(sync.get('bytes_per_s'))}/s", left)
    if gate := vm.get("gate"):
        held = f"held {gate.get('held_frames')} frames, {_bytes(gate.get('held_bytes'))}"
        counts = f"released {gate.get('released_frames')}  overflow {gate.get('overflow_frames')}"
        yield _row("  gate", str(gate.get("backend", "")), held, counts)
    if guard := vm.get("guard"):
        counts = "  ".join(f"{key} {guard.get(f'{key}_frames')}" for key in ("early", "closed", "expired", "unstamped"))
        passed = f"passed {guard.get('passed_frames')} frames"
        yield _row("  guard", "open" if guard.get("open") else "closed", passed, counts)
    pause = vm.get("pause_ms") or {}
    if pause.get("max"):
        figures = "  ".join(f"{key} {pause.get(key)}" for key in ("last", "p50", "p99", "max"))
        yield _row("  pause", figures + " ms", f"in flight {vm.get('in_flight')} epochs")


def _rules_lines(rules: dict[str, Any], colour: bool) -> Iterator[str]:
    drops = rules.get("drops", {})
    counts = [(f"{vm} {why}", count) for vm, kinds in sorted(drops.get("vms", {}).items())
              for why, count in kinds.items() if count]
    counts += [("strangers", drops["strangers"])] if drops.get("strangers") else []
    told = "dropped: " + "  ".join(f"{what} {count}" for what, count in counts) if counts else ""
    word = "loaded" if rules.get("loaded") else "off" if rules.get("mode") == "off" else "not loaded"
    yield _row("rules", _paint(word, colour and word == "not loaded"), str(rules.get("reason") or told))


def _row(head: str, *cells: str) -> str:
    # Columns of 16 measured without colour codes.
    text = f"{head:<16}"
    for cell in cells:
        text += cell + " " * max(2, 16 - _width(cell))
    return text.rstrip()


def _width(cell: str) -> int:
    return len(cell) - (len(_COLOURS["good"]) + len("\033[0m") if cell.startswith("\033") else 0)


def _paint(word: object, colour: bool) -> str:
    if not colour:
        return str(word)
    kind = "good" if word in SAFE | {"up"} else "bad" if word in DOWN | {"down"} else "transitional"
    return f"{_COLOURS[kind]}{word}\033[0m"


def _bytes(count: object) -> str:
    if not isinstance(count, int | float):
        return "-"
    size, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.1f} {units[0]}" if units[0] != "B" else f"{int(size)} B"
