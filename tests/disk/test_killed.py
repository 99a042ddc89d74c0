# SPDX-License-Identifier: GPL-2.0-or-later
"""A real process is killed at every step of applying: the images are one whole epoch, over all disks.

And none older than what it had called safe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.disk import model
from tests.disk.exporter import exporter
from tests.disk.test_apply import ROOM
from tests.disk.victim import GENERATION
from vmlink import inject
from vmlink.disk.exporter import connected, offer
from vmlink.disk.images import Images
from vmlink.disk.record import Kind, Write
from vmlink.disk.state import Standing
from vmlink.errors import VmError

SEED = 5
ROOT = Path(__file__).resolve().parents[2]
POINTS = [point for point in inject.POINTS if point.startswith("disk.") and point.count(".") == 1]


def killed_at(directory: Path, armed: str) -> int:
    """Let the victim run until it is killed. Returns the last epoch that it called safe."""
    victim = subprocess.run([sys.executable, "-m", "tests.disk.victim", directory, str(SEED)], cwd=ROOT, timeout=60,
                            capture_output=True, text=True, env={**os.environ, "HOLDFAST_INJECT": armed}, check=False)
    assert victim.returncode == -signal.SIGKILL, victim.stderr
    qemu, *safe = map(int, victim.stdout.split())
    with contextlib.suppress(psutil.NoSuchProcess):  # it dies with the victim, but has to have let go of the images
        psutil.Process(qemu).wait(30)
    return max(safe, default=0)


async def revived(directory: Path, *, scribble: random.Random | None = None) -> tuple[Images, list[bytes]]:
    """The images after a replay. With `scribble`, what was not flushed is lost before, or half of it: garbage stands
    wherever the journal is going to write."""
    specs = model.specs(directory)
    images = Images(specs, directory / "journal", ROOM)
    async with exporter(directory / "nbd.sock") as (exports, _):
        await offer(exports, specs)
        stores = connected(exports, specs)
        for disk, write in [each for group in images.journal.groups() for each in group.writes] if scribble else []:
            if scribble is not None and scribble.random() < 0.5:
                stores[disk].write([Write(Kind.WRITE, write.offset, write.length, scribble.randbytes(write.length))])
        images.replay(stores)
        found = [bytes(store.read(0, store.size)) for store in stores]
        for store in stores:
            store.close()
    return images, found


@pytest.mark.parametrize("nth", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(12, marks=pytest.mark.slow)])
@pytest.mark.parametrize("point", POINTS)
def test_the_images_are_a_whole_epoch(tmp_path: Path, point: str, nth: int) -> None:
    safe = killed_at(tmp_path, f"{point}:kill:{nth}")
    for scribble in (None, random.Random(f"{point} {nth}"), None):
        images, found = asyncio.run(revived(tmp_path, scribble=scribble))
        images.close()
        assert images.state.standing is Standing.REPLICA and images.state.point is not None
        epoch = images.state.point.epoch
        assert images.state.point.generation == GENERATION and epoch >= max(safe, 1)
        assert found == model.after(SEED, epoch)
        assert not images.pending


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point != "disk.journaled"])
def test_half_a_copy_starts_no_vm(tmp_path: Path, point: str) -> None:
    """Killed before the first epoch was in: neither the old content nor the new."""
    assert killed_at(tmp_path, f"{point}:kill") == 0
    images, _ = asyncio.run(revived(tmp_path))
    assert images.state.standing is Standing.HALF
    with pytest.raises(VmError, match="disk d0, d1 on this host is not whole: the copy .* not ended") as told:
        images.start(6)
    assert "let the other host start the VM" in told.value.hint
    images.close()
