# SPDX-License-Identifier: GPL-2.0-or-later
"""What tracing costs bulk TCP through the gate: without the code for it, with the code and nobody tracing, and with
every frame traced at every point into a file.

The three take turns within one connection, some tenths of a second each: whatever else goes on on the machine hits all
three alike. The programs are exchanged on their hooks, with the same state; the trace is switched by its flag.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.front import Front, FrontSpec
from appliance.trace import capture
from ebpf import libbpf, objects_dir
from tests.bench import gate
from tests.trace.service import Service

ROOT = Path(__file__).resolve().parents[2]
MODES = ("without", "off", "all")
SETTLE = 0.1  # seconds of each turn that do not count


def run(*, epoch_ms: float = 10.0, turns: int = 40, turn_s: float = 0.5, **_: Any) -> list[dict[str, Any]]:
    """Needs root, clang and iperf3. Each ratio is the median over the turns, each against its neighbour."""
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-") as place, gate._stage(gate._WINDOW) as prefix:
        for name in ("gate", "guard"):
            compile_untraced(name, Path(place))
        return asyncio.run(_run(prefix, epoch_ms, turns, turn_s, Path(place)))


def compile_untraced(name: str, place: Path) -> None:
    """The packet program without the code for tracing."""
    include = f"/usr/include/{os.uname().machine}-linux-gnu"
    command = ["clang", "-target", "bpf", "-mcpu=v3", "-O2", "-g", "-DHF_UNTRACED", "-idirafter", include, "-c",
               str(ROOT / "ebpf" / f"{name}.bpf.c"), "-o", str(place / f"{name}.bpf.o")]
    subprocess.run(command, check=True, timeout=60)


class Exchanged(Front):
    """A front whose programs can be exchanged for such as cannot trace, and back; both have the same state."""

    untraced: Path

    def _load(self) -> tuple[libbpf.Object, libbpf.Object]:
        own = super()._load()
        rings = ("trace_slots", "trace_rings")
        maps = (*rings, "gate_state", "inbound_state"), (*rings, "guard_state")
        shared = [{name: one.map(name) for name in names} for one, names in zip(own, maps, strict=True)]
        self.kinds = {place: [libbpf.Object.load(place / f"{name}.bpf.o", shared[number])
                              for number, name in enumerate(("gate", "guard"))]
                      for place in (self.untraced, objects_dir())}
        return own

    def exchange(self, traced: bool) -> None:
        gates, guards = self.kinds[objects_dir() if traced else self.untraced]
        out = socket.if_nametoindex(self.spec.device("o"))
        libbpf.attach(socket.if_nametoindex("vm0"), "ingress", gates.program("gate"))
        libbpf.attach(out, "egress", gates.program("inbound"))
        libbpf.attach(out, "ingress", guards.program("guard"))


@dataclass
class Measured:
    """Bits per second of each turn, by mode."""

    rates: dict[str, list[float]] = field(default_factory=lambda: {mode: [] for mode in MODES})
    traced_frames: int = 0
    traced_s: float = 0.0

    def ratio(self, mode: str, base: str) -> float:
        pairs = zip(self.rates[mode], self.rates[base], strict=True)
        return round(statistics.median(one / other for one, other in pairs), 3)


async def _run(prefix: str, epoch_ms: float, turns: int, turn_s: float, place: Path) -> list[dict[str, Any]]:
    Exchanged.untraced = place
    front = await Exchanged.create(FrontSpec("bench", "52:54:00:aa:00:10", (gate._GUEST,), "br0", 256 << 20))
    try:
        await front.attach_device("vm0")
        service = Service(front, -1, place)
        service.open()
        await service.start()
        async with _epochs(service, epoch_ms / 1000), _tracer(service, place / "all.pcapng"):
            stream = asyncio.ensure_future(gate._iperf(prefix, turns * len(MODES) * turn_s + 3.0))
            await asyncio.sleep(2.0)
            measured = await _turns(service, front, turns, turn_s)
            stream.cancel()
            await asyncio.wait([stream])
        await service.stop()
        lost, events = _told(place / "all.pcapng")
    finally:
        await front.close()
        gate._ungate()
    conditions = {
        "epoch_ms": epoch_ms, "turns": turns, "turn_s": turn_s, "streams": 1, "cpus": os.cpu_count(),
        "gbit_s": {mode: round(statistics.median(rates) / 1e9, 2) for mode, rates in measured.rates.items()},
        "frames_per_s": round(measured.traced_frames / measured.traced_s), "events": events, "lost_events": lost,
        "capture_mb": round((place / "all.pcapng").stat().st_size / 1e6, 1),
    }  # fmt: skip
    return [
        gate._result("trace.off.ratio", measured.ratio("off", "without"), "1", 0.98, conditions),
        gate._result("trace.all.ratio", measured.ratio("all", "without"), "1", 0.9, conditions),
        gate._result("trace.all.lost", round(lost / max(1, lost + events), 4), "1", 0.01, conditions) | {
            "better": "lower"},
    ]  # fmt: skip


async def _turns(service: Service, front: Exchanged, turns: int, turn_s: float) -> Measured:
    measured = Measured()
    words, listeners = front.slots._words, list(service.trail.listeners)
    for turn in range(turns):
        for mode in MODES if turn % 2 else reversed(MODES):
            front.exchange(mode != "without")
            for word in words:
                word.trace = 1 if mode == "all" else 0
            service.trail.listeners[:] = listeners if mode == "all" else []
            await asyncio.sleep(SETTLE)
            begun, bits, frames = time.monotonic(), front.guard.stats().passed_bytes, front.guard.stats().passed_frames
            await asyncio.sleep(turn_s - SETTLE)
            seconds = time.monotonic() - begun
            measured.rates[mode].append((front.guard.stats().passed_bytes - bits) * 8 / seconds)
            if mode == "all":
                measured.traced_frames += front.guard.stats().passed_frames - frames
                measured.traced_s += seconds
    service.trail.listeners[:] = listeners
    return measured


@contextlib.asynccontextmanager
async def _epochs(service: Service, epoch: float) -> AsyncIterator[None]:
    """Each is committed as soon as it ends: what is measured is the gate alone."""

    async def forever() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + epoch, loop.time())
            await asyncio.sleep(due - loop.time())
            await service.commit(service.pause())

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))


@contextlib.asynccontextmanager
async def _tracer(service: Service, out: Path) -> AsyncIterator[None]:
    """`holdfast trace` of everything, into a file."""
    command = (sys.executable, "-m", "appliance.cli", "trace", "-w", str(out), "--point", "all", "--control",
               str(service.path))
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stderr=subprocess.DEVNULL)
    await service.traced()
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await asyncio.wait_for(process.wait(), 60)


def _told(out: Path) -> tuple[int, int]:
    """Events lost and events told, as the capture's end says."""
    (end,) = [thing for thing in capture.things(out) if type(thing).__name__ == "End"]
    return end.lost_frames, end.frames  # type: ignore[union-attr]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epoch-ms", type=float, default=10.0)
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--turn-s", type=float, default=0.5)
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))


if __name__ == "__main__":
    main()
