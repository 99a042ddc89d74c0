# SPDX-License-Identifier: GPL-2.0-or-later
"""What monitoring costs the loop that lets VMs speak: a look at all figures, an epoch's record, a line of the log.

Everything in one process, without a VM; the services' own parts at work.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from appliance import config as cfg
from appliance.journal import Journal, quantile
from appliance.logs.lines import Form
from appliance.logs.logs import Logs
from appliance.metrics.pages import Monitoring
from appliance.service import Service
from vmlink.checkpoint import Snapshot, Steps
from vmlink.wire import PAGE

METHOD = "time.perf_counter in the event loop's thread; a service that was made, with two VMs, and not started"


def run(looks: int = 200, times: int = 20_000, **_: Any) -> list[dict[str, Any]]:
    """The results: durations in us."""
    with tempfile.TemporaryDirectory() as directory:
        whole, longest = asyncio.run(_looks(Path(directory), looks))
    conditions = {"method": METHOD, "looks": looks, "times": times}
    journal = _quiet()
    found = {
        "monitoring.look.p50": statistics.median(whole),
        "monitoring.look.stall.p50": statistics.median(longest),
        "monitoring.look.stall.p99": quantile(sorted(longest), 0.99),
        "monitoring.epoch": _each(_epochs(), times),
        "monitoring.log_line": _each(_lines(), times),
        "monitoring.event": _each(lambda number: journal.event("first-frame", frames=number), times),
    }
    return [{"name": name, "value": round(value * 1e6, 1), "unit": "us", "conditions": conditions}
            for name, value in found.items()]


async def _looks(directory: Path, looks: int) -> tuple[list[float], list[float]]:
    """How long each look took as a whole, and the longest stretch for which it kept the loop."""
    monitoring = _monitoring(directory)
    whole, longest = [], []
    for _ in range(looks):
        monitoring._at -= 10  # else the last look would serve
        stretches: list[float] = []
        begun = time.perf_counter()
        look = asyncio.ensure_future(monitoring.metrics({}))
        turned = begun
        while not look.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            stretches.append(now - turned)
            turned = now
        whole.append(time.perf_counter() - begun)
        longest.append(max(stretches))
    return whole, longest


def _monitoring(directory: Path) -> Monitoring:
    (directory / "vmlinuz").touch()
    vms = {name: cfg.Vm(home="alpha", memory=128 << 20, mac=f"52:54:00:00:00:0{number}", bridge="br0",
                        kernel=directory / "vmlinuz") for number, name in enumerate(("web1", "db1"))}
    links = tuple(cfg.Link(name=f"link{number}", interface=f"eth{number}", address=f"10.0.{number}.1",
                           peer=f"10.0.{number}.2") for number in range(2))
    config = cfg.Config(host=cfg.Host(name="alpha", state_dir=directory, run_dir=directory),
                        peer=cfg.Peer(name="beta"), link=links, vm=vms)
    return Service(config, Logs(os.open(os.devnull, os.O_WRONLY), Form.TEXT)).monitoring()


def _each(work: Callable[[int], object], times: int) -> float:
    """Seconds that one takes."""
    begun = time.perf_counter()
    for number in range(times):
        work(number)
    return (time.perf_counter() - begun) / times


def _epochs() -> Callable[[int], None]:
    journal = Journal("web1")
    snapshot = Snapshot(np.arange(100), np.zeros((100, PAGE), np.uint8), b"", 1.0, 1.004, Steps(0.001, 0.002, 0.001))

    def one(number: int) -> None:
        record = journal.epoch(1, number + 1, snapshot, 10 * number, 0.9)
        journal.acked(record, 1.01)
        journal.released(number + 1, 1.011)
        journal.out("commit", 10)

    return one


def _quiet() -> Journal:
    """A journal whose lines are logged nowhere."""
    logging.getLogger("holdfast").setLevel(logging.ERROR)
    return Journal("web1")


def _lines() -> Callable[[int], None]:
    logs = Logs(os.open(os.devnull, os.O_WRONLY), Form.TEXT)
    logs.position = {"web1": (3, 1000)}.get

    def one(number: int) -> None:
        logs.handle(logging.LogRecord("holdfast.vm", logging.INFO, __file__, 1, "%s: solo -> syncing: the copy %d",
                                      ("web1", number), None))

    return one
