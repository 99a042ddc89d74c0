# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client notices of a crash: many crashes at random moments, each host in turn, all streams running."""

from __future__ import annotations

import random
import sys
import time
from typing import Any

from appliance.errors import HoldfastError
from appliance.lab import failover
from appliance.lab.failover import Failover
from appliance.lab.figures import percentile
from appliance.lab.lab import Lab
from appliance.lab.observer import Observer
from tests.bench import scene

CALM_S = (1.0, 3.0)  # protected, before the next crash: a random time between these


def run(
    *, crashes: int = 20, seed: int = 1, streams: str = "incr,set,download,echo,ping", **_: Any
) -> list[dict[str, Any]]:
    """Needs root. Adaptive epochs. A host that fails to take over or return ends the run with an error."""
    with scene.lab("crash") as lab:
        setting, observer = scene.setting(lab), Observer(lab)
        with scene.client(lab, streams) as driver:
            observer.start()
            try:
                done = crash_in_turn(lab, observer, crashes, random.Random(seed))
            finally:
                observer.stop()
            recording = driver.stop()
    measured = [failover.measure(one, observer.seen, recording) for one in done]
    verdict = recording.verdict
    gaps = [one.gap_ms for one in measured if one.gap_ms is not None]
    conditions = {
        **setting, "epoch": "adaptive", "crashes": len(done), "seed": seed,
        "streams": streams, "requests": verdict.requests, "acked_writes": verdict.acked_writes,
        "gap_ms": [one.gap_ms for one in measured], "detect_ms": [one.detect_ms for one in measured],
        "resume_ms": [one.resume_ms for one in measured], "resync_ms": [one.resync_ms for one in measured],
        "early_frames": observer.seen.early_frames(), "problems": verdict.problems[:10],
        "client_timer_late_ms_max": round(recording.late_ms_max, 1),
    }  # fmt: skip
    broken = verdict.resets + verdict.timeouts
    resumed = [one.resume_ms for one in measured if one.resume_ms is not None]
    resynced = [one.resync_ms for one in measured if one.resync_ms is not None]
    return [
        scene.result("crash.gap.p50", percentile(gaps, 50), "ms", **conditions),
        scene.result("crash.gap.p95", percentile(gaps, 95), "ms", **conditions),
        scene.result("crash.resets", broken, "connections", **conditions),
        scene.result("crash.lost_acked_writes", verdict.lost_acked_writes, "writes", **conditions),
        scene.result("crash.resume.p50", percentile(resumed, 50), "ms", crashes=len(done)),
        scene.result("crash.resync.p50", percentile(resynced, 50), "ms", crashes=len(done)),
    ]


def crash_in_turn(lab: Lab, observer: Observer, crashes: int, chance: random.Random) -> list[Failover]:
    """Crash the host that runs the VM, again and again. Raises HoldfastError."""
    done: list[Failover] = []
    while len(done) < crashes:
        time.sleep(chance.uniform(*CALM_S))
        victim = failover.primary(observer)
        try:
            done.append(failover.carry_out(lab, observer, victim, away_s=1.0))
        except HoldfastError as error:
            for host in ("alpha", "beta"):
                for line in lab.log_tail(host):
                    print(f"{host}| {line}", file=sys.stderr)
            raise HoldfastError(f"crash {len(done) + 1}, of {victim}: {error.message}", error.hint) from error
    return done
