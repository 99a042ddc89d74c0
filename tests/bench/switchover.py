# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client notices of a planned switchover: many, at random moments, there and back, all streams running."""

from __future__ import annotations

import random
import time
from typing import Any

from appliance import control
from appliance.lab import blueprint
from appliance.lab.figures import percentile, rounded
from appliance.lab.lab import Lab
from tests.bench import scene

CALM_S = (0.5, 1.5)  # protected, before the next switchover: a random time between these
AFTER_S = 0.5  # in which the client may still notice something of it


def run(*, switchovers: int = 20, seed: int = 1, streams: str = "incr,set,echo,ping", **_: Any) -> list[dict[str, Any]]:
    """Needs root. Adaptive epochs. A switchover that is refused ends the run with an error."""
    with scene.lab("switchover") as lab:
        setting = scene.setting(lab)
        with scene.client(lab, streams) as driver:
            done = move_in_turn(lab, switchovers, random.Random(seed))
            recording = driver.stop()
    echo, verdict = recording.streams["echo"], recording.verdict
    gaps = [echo.longest_stall_ms(begin, begin + round(AFTER_S * 1e9)) for begin, _ in done]
    ordered = [took for _, took in done]
    conditions = {
        **setting, "epoch": "adaptive", "switchovers": len(done), "seed": seed, "streams": streams,
        "requests": verdict.requests, "acked_writes": verdict.acked_writes,
        "gap_ms": [rounded(gap, 1) for gap in gaps], "ordered_ms": ordered, "problems": verdict.problems[:10],
        "resets": verdict.resets, "timeouts": verdict.timeouts, "lost_acked_writes": verdict.lost_acked_writes,
        "client_timer_late_ms_max": round(recording.late_ms_max, 1),
    }  # fmt: skip
    return [
        scene.result("switchover.gap.p50", percentile(gaps, 50), "ms", **conditions),
        scene.result("switchover.gap.p95", percentile(gaps, 95), "ms", **conditions),
        scene.result("switchover.ordered.p50", percentile(ordered, 50), "ms", switchovers=len(done)),
        scene.result("switchover.broken", verdict.resets + verdict.timeouts + verdict.lost_acked_writes,
                     "requests", **conditions),
    ]  # fmt: skip


def move_in_turn(lab: Lab, switchovers: int, chance: random.Random) -> list[tuple[int, float]]:
    """Move the VM there and back: when each began (monotonic ns), and how long it took by the service's own word, ms.

    Raises HoldfastError.
    """
    asked = blueprint.control_path(lab.name, "alpha")
    done: list[tuple[int, float]] = []
    while len(done) < switchovers:
        lab.wait_protected(60.0)
        time.sleep(chance.uniform(*CALM_S))
        begin = time.monotonic_ns()
        reply = control.call(asked, "switchover", vm=blueprint.VM, timeout=30.0)
        time.sleep(AFTER_S)
        done.append((begin, reply["ms"]))
    return done
