# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast a disk is copied to the other host, and what a resync moves after a failover: 8 GiB full of data."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from appliance.errors import TimedOut, Unavailable
from appliance.lab import disks, failover, guest_checks
from appliance.lab.blueprint import DISK_GUEST_MEMORY, Options
from appliance.lab.disks import Disk
from appliance.lab.lab import Lab
from appliance.lab.observer import Observer
from appliance.lab.topology import HOSTS
from tests.bench import scene

MIB = 1 << 20
BLOCK = 8192
"""Bytes of what is written at random: of this image, what Holdfast remembers as one block."""
CHANGED = 0.01
PATIENCE = 900.0


def run(*, gib: int = 8, **_: Any) -> list[dict[str, Any]]:
    """Needs root, and twice `gib` GiB below HOLDFAST_LAB_DISKS."""
    options = Options(name="bench-disk-resync", guest="disk", memory=DISK_GUEST_MEMORY,
                      disks=(Disk("raw", size=gib << 30),))  # fmt: skip
    lab = Lab.create(options)
    try:
        fill(disks.path(lab.name, "alpha", 1, options.disks[0]), gib << 30)
        observer = Observer(lab)
        lab.start_third()
        for host in HOSTS:
            lab.start(host)
        lab.wait_protected(PATIENCE)
        first = copied(observer, "alpha", 0.0)
        lab.wait_guest(120.0)
        setting = {**scene.setting(lab), "image_gib": gib, "content": "random bytes, no holes"}
        after = resync(lab, observer, gib << 30)
    finally:
        lab.down()
    share = round(float(after["moved"]) / (gib << 30) * 100, 3)
    resynced = "looked_at" if after["by"] == "checksums" else "moved"
    return [
        scene.result("disk.copy.rate", rate(first, "moved"), "MB/s", copy=first, **setting),
        scene.result("disk.resync.rate", rate(after, resynced), "MB/s", of=resynced, resync=after, **setting),
        scene.result("disk.resync.moved", share, "%", resync=after,
                     changed=f"{CHANGED:.0%} of all blocks of {BLOCK} bytes, at random", **setting),
    ]  # fmt: skip


def fill(image: Path, size: int) -> None:
    """Write bytes that nothing can compress over all of an image."""
    chance = np.random.default_rng(1)
    with image.open("r+b") as file:
        for _ in range(0, size, 16 * MIB):
            file.write(chance.bytes(16 * MIB))


def resync(lab: Lab, observer: Observer, size: int) -> dict[str, Any]:
    """The host that runs the VM crashes; the VM changes blocks on the other one; the first comes back."""
    victim = failover.primary(observer)
    survivor = HOSTS[1 - HOSTS.index(victim)]
    lab.fault("crash", victim)
    observer.wait_phase(survivor, frozenset({"solo"}), failover.TAKEOVER_S)
    count = int(size * CHANGED) // BLOCK
    status, said = guest_checks.run(
        lab, f"fio filename=/dev/vdb rw=randwrite bs={BLOCK} direct=1 ioengine=libaio iodepth=8 number_ios={count}"
    )
    if status:
        raise Unavailable(f"fio: {said[-300:]}", "see the guest's console")
    begun = time.time()
    lab.heal(victim)
    lab.wait_protected(PATIENCE)
    return copied(observer, survivor, begun)


def copied(observer: Observer, host: str, after: float) -> dict[str, Any]:
    """What that host's service says of its latest copy of the disks. Raises TimedOut when it says nothing."""
    events = [event for event in observer.status(host).get("events", ()) if event["event"] == "disks-copied"]
    if not events or events[-1]["at"] < after:
        raise TimedOut(f"{host} tells of no copy of disks", "see its log")
    return {name: events[-1][name] for name in ("by", "rounds", "looked_at", "moved", "seconds")}


def rate(copy: dict[str, Any], what: str) -> float:
    return float(copy[what]) / 1e6 / float(copy["seconds"])
