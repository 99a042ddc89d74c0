# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benches share: a lab for the time of a measurement, the client in it, and the shape of a result."""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.lab.blueprint import Options
from appliance.lab.driver import Driver
from appliance.lab.figures import percentile, rounded
from appliance.lab.lab import Lab
from appliance.lab.observer import Epoch, Observer
from appliance.lab.topology import VM_IP, inside

CONTROL_PORT = 9  # of our guest image: makes it dirty memory


@contextlib.contextmanager
def lab(name: str, **options: Any) -> Iterator[Lab]:
    """A lab that is protected on entry and gone on exit; `options` are those of Options. Raises HoldfastError."""
    made = Lab.up(Options(name=f"bench-{name}", **options), progress=lambda line: None)
    try:
        yield made
    finally:
        made.down()


@contextlib.contextmanager
def client(lab: Lab, streams: str) -> Iterator[Driver]:
    """The workload with these streams, driving on entry."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as place:
        with Driver.in_lab(lab, Path(place) / "client.json", streams=streams) as driver:
            driver.wait_ready()
            yield driver


def setting(lab: Lab) -> dict[str, Any]:
    """What the lab's VM is, for the conditions of a result; accel as QEMU was really told."""
    accel = "unknown"
    for host in lab.status()["hosts"].values():
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(f"/proc/{host['qemu_pid']}/cmdline").read_bytes().split(b"\0")
            accel = words[words.index(b"-accel") + 1].decode()
    return {"memory_mib": lab.options.memory >> 20, "vcpus": lab.options.vcpus, "accel": accel}


def keep_dirtying(lab: Lab, pages: int, period_ms: int) -> None:
    """Let the guest write to `pages` pages in every period; 0 to stop. Raises OSError."""
    with inside(lab.netns("client")):
        control = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with control:
        control.settimeout(10.0)
        control.connect((VM_IP, CONTROL_PORT))
        control.sendall(f"dirty {pages} {period_ms}\n".encode())
        answer = control.recv(256)
    if not answer.startswith(b"dirty") and not answer.startswith(b"ok"):
        raise OSError(f"the guest does not dirty memory: {answer[:80]!r}")


def epochs(lab: Lab, seconds: float) -> list[Epoch]:
    """The checkpoints of the next `seconds` seconds; nobody asks the services anything meanwhile."""
    begin = time.time()
    time.sleep(seconds)
    end = time.time()
    observer = Observer(lab)
    observer.look()
    return [epoch for epoch in observer.seen.epochs.values() if begin <= epoch.at < end]


def result(name: str, value: float, unit: str, **conditions: Any) -> dict[str, Any]:
    """One result; its goal is added by the runner."""
    return {"name": name, "value": rounded(value), "unit": unit, "conditions": conditions}


def spread(samples: list[float]) -> dict[str, Any]:
    """Where samples lie, for the conditions of a result."""
    shares = {f"p{share}": rounded(percentile(samples, share)) for share in (5, 50, 95, 99)}
    return {"samples": len(samples), **shares, "max": rounded(max(samples, default=float("nan")))}
