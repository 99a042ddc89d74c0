# SPDX-License-Identifier: GPL-2.0-or-later
"""All kinds of fault that a campaign can play, and how often each comes up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from appliance.lab.campaign_disks import at_a_flush, disk_fails_then_crash, link_in_copy, storage_breaks
from appliance.lab.campaign_faults import (
    Play,
    backup_at,
    both_links,
    crash_in_resync,
    crash_in_switchover,
    handover_at,
    link_down,
    one,
    partition_without_witness,
    power_loss_both,
    primary_at,
    second_fault,
    sync_at,
    takeover_at,
    uplink_down,
    witness_down,
)
from appliance.lab.campaign_volumes import nobody_reaches_it, redo_at
from appliance.lab.topology import LINKS
from vmlink import inject


@dataclass(frozen=True)
class Kind:
    """A kind of fault. `weight`: how often it comes up in a pass; `arbitrated`: it takes a lab with a witness;
    `storage`: one whose VM has that (disk: replicated, volume: shared)."""

    play: Callable[[Play], None]
    weight: int = 2
    arbitrated: bool = False
    storage: str = ""


_AT = {"checkpoint": primary_at, "epoch": primary_at, "link": primary_at, "drive": primary_at, "replica": backup_at,
       "disk": backup_at, "takeover": takeover_at, "handover": handover_at, "volume": primary_at,
       "redo": redo_at}  # fmt: skip
_STORAGE = {"disk": "disk", "drive": "disk", "volume": "volume", "redo": "volume"}


def _points() -> dict[str, Kind]:
    """One kind for each injection point."""
    found = {}
    for point in inject.POINTS:
        step, *rest = point.split(".")
        if step in _AT and len(rest) == 1:  # nobody changes the disks of a campaign's VM
            found[f"checkpoint-{point}:kill"] = Kind(partial(_AT[step], point), 1, storage=_STORAGE.get(step, ""))
    found["checkpoint-disk.flushed:kill"] = Kind(at_a_flush, 1, storage="disk")
    found["checkpoint-sync.round:raise"] = Kind(partial(sync_at, "sync.round"), 1)
    return found


KINDS: dict[str, Kind] = {
    "host-crash": Kind(partial(one, "crash"), 3),
    "qemu-kill": Kind(partial(one, "qemu-kill")),
    "service-kill": Kind(partial(one, "service-kill")),
    "service-pause": Kind(partial(one, "service-pause")),
    **{f"link-down:{number}": Kind(partial(link_down, number)) for number in range(len(LINKS))},
    "both-links": Kind(both_links, arbitrated=True),
    "witness-down": Kind(witness_down, arbitrated=True),
    "partition-without-witness": Kind(partition_without_witness, arbitrated=True),
    "uplink-down": Kind(uplink_down),
    "power-loss-both": Kind(power_loss_both, 1),
    **_points(),
    "crash-in-resync": Kind(crash_in_resync),
    "crash-in-switchover": Kind(crash_in_switchover),
    "second-fault": Kind(second_fault, 3),
    "disk-fail": Kind(partial(storage_breaks, "disk-fail"), 3, storage="disk"),
    "disk-full": Kind(partial(storage_breaks, "disk-full"), storage="disk"),
    "disk-fail-then-crash": Kind(disk_fails_then_crash, storage="disk"),
    "link-down-in-copy": Kind(partial(link_in_copy, "link-down"), storage="disk"),
    "both-links-in-copy": Kind(partial(link_in_copy, "both-links"), arbitrated=True, storage="disk"),
    "san-down": Kind(partial(storage_breaks, "san-down"), 3, storage="volume"),
    "volume-away": Kind(nobody_reaches_it, storage="volume"),
}
