# SPDX-License-Identifier: GPL-2.0-or-later
"""What the health monitors cost: all of them, at their default intervals, alone in one process.

    python -m tests.bench.health [SECONDS]

On a bridge with one uplink and one neighbour that is probed, two directories and two files on this machine's disk.
Prints the share of one core, threads included, and how long each monitor keeps the event loop to itself.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from appliance import config as cfg
from appliance.health.health import Health
from appliance.health.monitor import Monitor
from tests.net.stage import Stage

WARM_UP = 2.0


async def step(monitor: Monitor) -> float:
    """Seconds of this thread that one reading costs, whoever else waits."""
    begun = time.thread_time()
    await monitor.read()
    return time.thread_time() - begun


async def measure(directory: Path, seconds: float) -> None:
    kernel = directory / "vmlinuz"
    kernel.write_bytes(bytes(1 << 20))
    vm = cfg.Vm(home="a", memory=1 << 27, mac="52:54:00:00:00:01", bridge="br0", kernel=kernel)
    (directory / "run").mkdir()
    config = cfg.Config(host=cfg.Host(name="a", state_dir=directory, run_dir=directory / "run"),
                        peer=cfg.Peer(name="b"), link=(), vm={"web1": vm}, health=cfg.Health(probe=("10.77.9.1",)))
    health = Health(config, [], list, lambda: None)
    running = asyncio.ensure_future(health.run())
    await asyncio.sleep(WARM_UP)
    cpu, wall = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    print(f"{len(health.readings())} readings, {share:.2%} of one core over {seconds:g} s")
    for monitor in health._monitors():
        await monitor.read()
        costs = sorted([await step(monitor) for _ in range(20)])
        print(f"  {monitor.name:<8} {costs[10] * 1e6:6.0f} us, at most {costs[-1] * 1e6:6.0f} us")
        monitor.close()


def main() -> None:
    stage = Stage()
    try:
        stage.build()
        stage.quiet()
        with tempfile.TemporaryDirectory() as directory:
            asyncio.run(measure(Path(directory), float(sys.argv[1]) if len(sys.argv) > 1 else 20.0))
    finally:
        stage.tear_down()


if __name__ == "__main__":
    main()
