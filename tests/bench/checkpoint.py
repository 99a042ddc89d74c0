# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a checkpoint pauses the VM: idle, under redis load, and with 4,000 pages dirtied per epoch."""

from __future__ import annotations

import time
from typing import Any

from appliance.lab.figures import percentile
from appliance.lab.lab import Lab
from tests.bench import scene

DIRTY_PAGES = 4000


def run(*, epoch_ms: float = 25.0, seconds: float = 20.0, **_: Any) -> list[dict[str, Any]]:
    """Needs root. Every figure is over all checkpoints of `seconds` seconds."""
    results = []
    with scene.lab("checkpoint", epoch=epoch_ms / 1e3) as lab:
        time.sleep(5.0)  # the guest has come to rest
        results += pauses(lab, "checkpoint.pause.idle", epoch_ms, seconds, "none")
        with scene.client(lab, "incr,set,echo"):
            time.sleep(1.0)
            results += pauses(lab, "checkpoint.pause", epoch_ms, seconds, "redis INCR, SET and echo without pause")
        scene.keep_dirtying(lab, DIRTY_PAGES, round(epoch_ms))
        time.sleep(1.0)
        load = f"{DIRTY_PAGES} pages written every {epoch_ms:g} ms"
        results += pauses(lab, "checkpoint.pause.4000pages", epoch_ms, seconds, load)
    return results


def pauses(lab: Lab, name: str, epoch_ms: float, seconds: float, load: str) -> list[dict[str, Any]]:
    taken = scene.epochs(lab, seconds)
    samples = [epoch.pause_ms for epoch in taken]
    pages = [float(epoch.pages) for epoch in taken]
    conditions = {
        **scene.setting(lab), "epoch_ms": epoch_ms, "load": load,
        "pause_ms": scene.spread(samples), "dirty_pages": scene.spread(pages),
    }  # fmt: skip
    return [
        scene.result(f"{name}.p50", percentile(samples, 50), "ms", **conditions),
        scene.result(f"{name}.p99", percentile(samples, 99), "ms", **conditions),
    ]
