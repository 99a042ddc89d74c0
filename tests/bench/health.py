# SPDX-License-Identifier: GPL-2.0-or-later
"""What the health monitors cost: all of them, at their default intervals, alone in one process.

    python -m tests.bench.health [SECONDS]

On a bridge with one uplink and one neighbour that is probed, two directories and two files on this machine's disk.
Prints the share of one core, threads included, and how long a single callback keeps the event loop to itself.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from appliance import config as cfg
from appliance.health.health import Health
from tests.net.stage import Stage

WARM_UP = 2.0


class Callbacks:
    """How long each callback of the event loop took, in seconds of the wall clock."""

    def __init__(self) -> None:
        self.took: list[float] = []
        plain = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            begun = time.perf_counter()
            plain(handle)
            self.took.append(time.perf_counter() - begun)

        asyncio.Handle._run = timed  # type: ignore[method-assign]


async def measure(directory: Path, seconds: float) -> None:
    callbacks = Callbacks()
    kernel = directory / "vmlinuz"
    kernel.write_bytes(bytes(1 << 20))
    vm = cfg.Vm(home="a", memory=1 << 27, mac="52:54:00:00:00:01", bridge="br0", kernel=kernel)
    (directory / "run").mkdir()
    config = cfg.Config(host=cfg.Host(name="a", state_dir=directory, run_dir=directory / "run"),
                        peer=cfg.Peer(name="b"), link=(), vm={"web1": vm}, health=cfg.Health(probe=("10.77.9.1",)))
    health = Health(config, [], list, lambda: None)
    running = asyncio.ensure_future(health.run())
    await asyncio.sleep(WARM_UP)
    callbacks.took.clear()
    cpu, wall = time.process_time(), time.monotonic()
    await asyncio.sleep(seconds)
    share = (time.process_time() - cpu) / (time.monotonic() - wall)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    print(f"{len(health.readings())} readings, {share:.2%} of one core over {seconds:g} s")
    took = sorted(callbacks.took)
    print(f"{len(took) / seconds:.0f} callbacks a second: p50 {took[len(took) // 2] * 1e6:.0f} us, "
          f"p99 {took[int(len(took) * 0.99)] * 1e6:.0f} us, max {took[-1] * 1e6:.0f} us")


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
