# SPDX-License-Identifier: GPL-2.0-or-later
"""What a replicated disk costs: writes of a protected guest against those of a bare one, in the same run."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from appliance.errors import Unavailable
from appliance.lab import guest_checks
from appliance.lab.blueprint import DISK_GUEST_MEMORY, Options
from appliance.lab.figures import percentile
from appliance.lab.lab import Lab
from tests.bench import bare, scene

SIZE = "256M"  # the file that is written to: as large as the guest's memory
# Flushed every 32 MiB: without, a bare guest writes into the host's memory at 4 GB/s, and no disk is measured.
SEQUENTIAL = f"rw=write bs=1M size={SIZE} iodepth=4 fdatasync=32"
RANDOM = f"rw=randwrite bs=4k size={SIZE} iodepth=8"
COMMITS = f"rw=randwrite bs=4k size={SIZE} iodepth=1 fdatasync=1"
KINDS = {"seq": (SEQUENTIAL, "MB/s"), "random": (RANDOM, "writes/s"), "commit": (COMMITS, "writes/s")}
FIO = "direct=1 ioengine=libaio time_based=1"
Check = Callable[[str], tuple[int, str]]


def run(*, seconds: float = 10.0, turns: int = 3, **_: Any) -> list[dict[str, Any]]:
    """Needs root. Each figure is the median of `turns` runs of fio, `seconds` seconds each; the bare guest has its
    turns before and after the protected one."""
    options = Options(guest="disk", memory=DISK_GUEST_MEMORY)
    with bare.guest(options) as alone:
        before = throughput(alone.check, seconds, turns)
    with scene.lab("disk", guest="disk", memory=DISK_GUEST_MEMORY) as lab:
        setting = scene.setting(lab)
        protected = throughput(lambda words: guest_checks.run(lab, words), seconds, turns)
        pauses = pauses_under_load(lab, seconds)
    with bare.guest(options) as alone:
        after = throughput(alone.check, seconds, turns)
    results = []
    for kind, (words, unit) in KINDS.items():
        without = statistics.median(before[kind] + after[kind])
        conditions = {
            **setting, "fio": f"{words} {FIO} runtime={seconds:g}", "turns": turns, "unit_of_each": unit,
            "protected": protected[kind], "unprotected_before": before[kind], "unprotected_after": after[kind],
        }  # fmt: skip
        results.append(scene.result(f"disk.{kind}.ratio", statistics.median(protected[kind]) / without, "of bare",
                                    **conditions))  # fmt: skip
    results.append(scene.result("disk.pause.p50", percentile(pauses, 50), "ms", **setting,
                                load=f"fio {RANDOM} {FIO}", pause_ms=scene.spread(pauses)))  # fmt: skip
    return results


def throughput(check: Check, seconds: float, turns: int) -> dict[str, list[float]]:
    """Of each kind, what each turn wrote: MB or writes per second."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    fio(check, SEQUENTIAL, 1.0)  # the file is there: what follows overwrites
    for _ in range(turns):
        for kind, (words, unit) in KINDS.items():
            written = fio(check, words, seconds)
            found[kind].append(round(written["bw_bytes"] / 1e6 if unit == "MB/s" else written["iops"], 1))
    return found


def fio(check: Check, words: str, seconds: float) -> dict[str, Any]:
    """What one run of fio says of its writes. Raises OSError or Unavailable."""
    status, said = check(f"fio {words} {FIO} runtime={seconds:g}")
    if status:
        raise Unavailable(f"fio {words}: {said[-300:]}", "see the guest's console")
    written: dict[str, Any] = json.loads(said[said.index("{") :])["jobs"][0]["write"]
    return written


def pauses_under_load(lab: Lab, seconds: float) -> list[float]:
    """The pauses of all checkpoints of `seconds` seconds, in ms, while fio writes at random."""
    load = threading.Thread(target=fio, args=(lambda words: guest_checks.run(lab, words), RANDOM, seconds + 3))
    load.start()
    time.sleep(1.5)
    taken = scene.epochs(lab, seconds)
    load.join()
    return [epoch.pause_ms for epoch in taken]
