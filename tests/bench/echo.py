# SPDX-License-Identifier: GPL-2.0-or-later
"""What output commit costs a lone client: TCP echo round trips at fixed and at adaptive epochs."""

from __future__ import annotations

import time
from typing import Any

from appliance.lab.figures import percentile
from tests.bench import scene

EPOCHS = {"25ms": 0.025, "10ms": 0.010, "adaptive": None}


def run(*, seconds: float = 15.0, **_: Any) -> list[dict[str, Any]]:
    """Needs root. A lab each; one client, one connection, 32 bytes at a time, the next 2 ms apart at least."""
    results = []
    for name, epoch in EPOCHS.items():
        with scene.lab(f"echo-{name}", epoch=epoch) as lab:
            time.sleep(3.0)
            setting = scene.setting(lab)
            with scene.client(lab, "echo") as driver:
                begin = time.monotonic_ns() + 1_000_000_000
                time.sleep(seconds + 1.0)
                recording = driver.stop()
        samples = recording.streams["echo"].latencies_ms(begin)
        conditions = {
            **setting, "epoch": name, "seconds": seconds, "clients": 1,
            "resets": recording.verdict.resets, "rtt_ms": scene.spread(samples),
        }  # fmt: skip
        results.append(scene.result(f"echo.{name}.p50", percentile(samples, 50), "ms", **conditions))
    return results
