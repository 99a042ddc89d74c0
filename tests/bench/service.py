# SPDX-License-Identifier: GPL-2.0-or-later
"""What the service itself needs in memory, beyond the guest's RAM that it maps: both hosts, through a failover."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from appliance.lab import failover
from appliance.lab.lab import Lab
from appliance.lab.observer import Observer
from appliance.lab.topology import HOSTS
from tests.bench import scene

EVERY_S = 0.1
METHOD = (
    "RssAnon + RssFile of /proc/PID/status, the highest of samples every 100 ms, the higher host; the guest's RAM "
    "is a shared file mapping in tmpfs and counts as RssShmem, which is left out"
)


class Sampler:
    """A thread that notes the highest resident memory of each service, in bytes."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.peak = dict.fromkeys(HOSTS, 0)
        self.shared = dict.fromkeys(HOSTS, 0)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            for host in HOSTS:
                service = self._lab.service(host)
                own, shared = resident(service.pid) if service else (0, 0)
                self.peak[host] = max(self.peak[host], own)
                self.shared[host] = max(self.shared[host], shared)


def resident(pid: int) -> tuple[int, int]:
    """Private plus file-backed, and shared-memory resident bytes of `pid`; zeros when it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.startswith("Rss"))
    sizes = {name: int(value.split()[0]) * 1024 for name, value in fields.items()}
    return sizes.get("RssAnon", 0) + sizes.get("RssFile", 0), sizes.get("RssShmem", 0)


def run(*, seconds: float = 10.0, **_: Any) -> list[dict[str, Any]]:
    """Needs root. All streams; one crash and its resync in between."""
    with scene.lab("service") as lab, scene.client(lab, "incr,set,download,echo,ping"), Sampler(lab) as sampler:
        time.sleep(seconds)
        observer = Observer(lab)
        failover.carry_out(lab, observer, failover.primary(observer), away_s=1.0)
        time.sleep(seconds)
        setting = scene.setting(lab)
    megabytes = {host: round(value / 1e6, 1) for host, value in sampler.peak.items()}
    shared = {host: round(value / 1e6, 1) for host, value in sampler.shared.items()}
    return [
        scene.result("service.rss", max(megabytes.values()), "MB", method=METHOD, hosts_mb=megabytes,
                     shared_left_out_mb=shared, **setting)
    ]  # fmt: skip
