# SPDX-License-Identifier: GPL-2.0-or-later
"""What finding the written pages costs: one scan at 1,000 dirty pages, for VMs of 128 MiB, 1 GiB and 4 GiB.

A real QEMU, paused; the pages are written in its address space from outside, so that there are exactly as
many as asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.vmlink.machine import MIB, machine, spec
from vmlink.errors import VmError
from vmlink.ram import PAGE, GuestRam
from vmlink.tracker import Tracker, choose
from vmlink.uffd import Mapping, find_mappings

_SIZES = {"track.128m": (128, 0.5), "track.1g": (1024, 1.0), "track.4g": (4096, 2.5)}
"""MiB of guest memory, and the goal in ms: 0.6 ms per GiB, and what 1,000 pages cost."""


def run(*, dirty: int = 1000, scans: int = 100, tracker: str = "auto", **_: Any) -> list[dict[str, Any]]:
    """Needs root and as much free memory as the largest VM; a size that does not fit is left out."""
    return asyncio.run(_run(dirty, scans, tracker))


async def _run(dirty: int, scans: int, prefer: str) -> list[dict[str, Any]]:
    results = []
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as place:
        for name, (mebibytes, goal) in _SIZES.items():
            try:
                async with machine(Path(place), spec(memory_bytes=mebibytes * MIB), incoming=True) as (qemu, ram):
                    tracker = choose(qemu, ram, prefer)
                    try:
                        results.append(_measure(name, goal, qemu.pid, ram, tracker, dirty, scans))
                    finally:
                        tracker.close()
            except VmError as error:
                print(f"{name}: left out: {error}")
    return results


def _measure(name: str, goal: float, pid: int, ram: GuestRam, tracker: Tracker, dirty: int,
             scans: int) -> dict[str, Any]:
    mapping = find_mappings(pid, ram.identity)[0]
    chance = random.Random(name)
    tracker.arm()
    scan_ms, copy_ms = [], []
    for turn in range(scans):
        pages = sorted(chance.sample(range(ram.size // PAGE), dirty))
        _write_within(pid, mapping, pages, turn)
        begun = time.perf_counter()
        found = tracker.collect()
        scanned = time.perf_counter()
        copied = tracker.source[found]
        ended = time.perf_counter()
        assert found.tolist() == pages and len(copied) == dirty
        scan_ms.append((scanned - begun) * 1e3)
        copy_ms.append((ended - scanned) * 1e3)
    return {
        "name": name, "value": round(statistics.median(scan_ms), 3), "unit": "ms", "goal": goal, "better": "lower",
        "conditions": {
            "tracker": tracker.name, "memory_bytes": ram.size, "dirty_pages": dirty, "scans": scans,
            "scan_max_ms": round(max(scan_ms), 3), "copy_ms": round(statistics.median(copy_ms), 3),
            "kernel": platform.release(), "cpus": os.cpu_count(),
        },
    }  # fmt: skip


def _write_within(pid: int, mapping: Mapping, pages: list[int], turn: int) -> None:
    """Write to these pages as the process itself would: through its own page tables."""
    memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        for page in pages:
            os.pwrite(memory, (turn + 1).to_bytes(8, "little"), mapping.start + page * PAGE + 8 * (turn % 500))
    finally:
        os.close(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dirty", type=int, default=1000, help="pages written before each scan")
    parser.add_argument("--scans", type=int, default=100)
    parser.add_argument("--tracker", default="auto", choices=("auto", "uffd-wp", "compare"))
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
