# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast top`: what protection does and costs, live: one line for each VM and each link."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from appliance.cli.call import Call
from appliance.cli.screen import Screen, size, table
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

EVERY = 1.0
"""Seconds."""
HEADS = ("VM", "ROLE", "PHASE", "EPOCH/S", "PAUSE", "MAX", "PAGES", "HELD", "BYTES", "HOLD", "MAX", "LAG", "ACK", "OUT")
LINK_HEADS = ("LINK", "STATE", "RTT", "SENT", "RECEIVED")


def measured(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, Any]:
    """holdfast.top/1: what two answers to `status`, `seconds` apart, say of the time between."""
    vms = {name: _vm(before["vms"].get(name, {}), vm, seconds) for name, vm in after["vms"].items()}
    was = {link["name"]: link for link in before["peer"]["links"]}
    links = [_link(was.get(link["name"], {}), link, seconds) for link in after["peer"]["links"]]
    return {"schema": "holdfast.top/1", "host": after["host"], "peer": after["peer"]["name"],
            "peer_state": after["peer"]["state"], "interval_s": round(seconds, 3), "vms": vms, "links": links}


def _vm(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, Any]:
    gate, was = after.get("gate") or {}, before.get("gate") or {}
    return {
        "role": after["role"], "phase": after["phase"],
        "epochs_per_s": _rate(before.get("checkpoints"), after.get("checkpoints"), seconds),
        "pause_ms": after["pause_ms"]["p50"], "pause_max_ms": after["pause_ms"]["max"],
        "dirty_pages": after["dirty_pages"]["p50"],
        "held_frames": gate.get("held_frames", 0), "held_bytes": gate.get("held_bytes", 0),
        "hold_ms": after["hold_ms"]["p50"], "hold_max_ms": after["hold_ms"]["max"],
        "lag_epochs": after["epoch"] - after["committed"], "commit_ms": after["commit_ms"]["p50"],
        "released_bytes_per_s": _rate(was.get("released_bytes"), gate.get("released_bytes"), seconds),
        "throttled": after["throttled"],
    }


def _link(before: dict[str, Any], after: dict[str, Any], seconds: float) -> dict[str, Any]:
    return {"name": after["name"], "state": after["state"], "active": after["active"], "rtt_us": after["rtt_us"],
            "sent_bytes_per_s": _rate(before.get("sent_bytes"), after.get("sent_bytes"), seconds),
            "received_bytes_per_s": _rate(before.get("received_bytes"), after.get("received_bytes"), seconds)}


def _rate(before: Any, after: Any, seconds: float) -> float | None:
    """None where it is not known, as over a restart of the service."""
    if not isinstance(before, int) or not isinstance(after, int) or after < before or seconds <= 0:
        return None
    return round((after - before) / seconds, 1)


def render(found: dict[str, Any], screen: Screen) -> str:
    """Both tables, and what the columns are."""
    peer = f"peer {found['peer']} {screen.paint(found['peer_state'])}"
    head = f"host {found['host']}   {peer}   over {found['interval_s']:.1f} s"
    vms = [(name, vm["role"], screen.paint(vm["phase"]), _figure(vm["epochs_per_s"]), f"{vm['pause_ms']:.1f} ms",
            f"{vm['pause_max_ms']:.1f} ms", str(vm["dirty_pages"]), str(vm["held_frames"]), size(vm["held_bytes"]),
            f"{vm['hold_ms']:.1f} ms", f"{vm['hold_max_ms']:.1f} ms", str(vm["lag_epochs"]),
            f"{vm['commit_ms']:.1f} ms", _speed(vm["released_bytes_per_s"]))
           for name, vm in sorted(found["vms"].items())]
    links = [(link["name"], screen.paint(link["state"]), "-" if link["rtt_us"] is None else f"{link['rtt_us']} us",
              _speed(link["sent_bytes_per_s"]), _speed(link["received_bytes_per_s"])) for link in found["links"]]
    return "\n".join([head, "", table(HEADS, vms, "lllrrrrrrrrrrr"), "", table(LINK_HEADS, links, "llrrr")])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _speed(value: float | None) -> str:
    return "-" if value is None else f"{size(value)}/s"


def _run(call: Call) -> int:
    left = call.args.count
    before, at = call.ask("status", timeout=5.0), time.monotonic()
    while left is None or left > 0:
        time.sleep(call.args.watch)
        after, now = call.ask("status", timeout=5.0), time.monotonic()
        found = measured(before, after, now - at)
        call.screen.repaint(found, partial(render, found, call.screen))
        before, at, left = after, now, None if left is None else left - 1
    return Exit.OK


VERBS = (
    Verb(
        "top", "what protection does and costs, live",
        text="""For each VM: epochs a second; the pause of each, median and longest of the last 512; dirty pages,
median; frames and bytes held at the gate now; how long output was held from the moment it was there until it was let
go, median and longest; LAG, how many epochs the backup has not acknowledged; ACK, how long that takes, median; and
what leaves the gate. For each link: round trip, and bytes sent and received. On a terminal it is drawn anew every so
often; elsewhere it prints one JSON object a line.""",
        arguments=(Argument("--watch", f"every so often; every {EVERY:g} s if not given", kind=Kind.SECONDS, short="-w",
                            default=EVERY),
                   Argument("--count", "end after so many", kind=Kind.COUNT, short="-n")),
        examples=(("holdfast top", "why is my latency high?"), ("holdfast top -n 1 -j", "the figures of one second")),
        access=Access.GROUP, service="status", schema="holdfast.top/1", run=_run,
    ),
)
