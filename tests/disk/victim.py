# SPDX-License-Identifier: GPL-2.0-or-later
"""A backup's disks in a process of their own, for the tests that kill it: a copy, then epoch after epoch, for ever.

Says the pid of its QEMU, then each epoch that is safe on disk, one a line. `python -m tests.disk.victim DIRECTORY SEED`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import psutil

from tests.disk import model
from tests.disk.test_apply import applier
from vmlink.disk.apply import merged

GENERATION = 99


async def run(directory: Path, seed: int) -> None:
    async with applier(directory) as (made, _, heard):
        [qemu] = psutil.Process().children(recursive=True)
        print(qemu.pid, flush=True)
        made.begin(GENERATION, None, 5)
        made.copy(merged([model.epoch(seed, 0)]))
        number = told = 0
        while not heard:
            number += 1
            made.add(number, model.epoch(seed, number))
            await made.room()
            await asyncio.sleep(0.12 if number % 8 == 0 else 0.002)  # now and then it is quiet
            if made.durable > told:
                told = made.durable
                print(told, flush=True)
        raise heard[0]


if __name__ == "__main__":
    asyncio.run(run(Path(sys.argv[1]), int(sys.argv[2])))
