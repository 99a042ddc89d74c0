# SPDX-License-Identifier: GPL-2.0-or-later
"""What a test may not leave behind, and what it borrows of the machine for a while."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


@contextmanager
def no_process_left() -> Iterator[None]:
    """No process that is started in the block outlives it; those of wider fixtures are their own matter."""
    others = set(psutil.Process().children(recursive=True))
    yield
    children = [child for child in psutil.Process().children(recursive=True) if child not in others]
    assert not children, f"left behind: {children}"


@contextmanager
def memory_file_system(place: Path, size: str) -> Iterator[Path]:
    """A tmpfs of this size, as mount(8) writes it, at the new directory `place`."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "holdfast-test", place], check=True, timeout=10)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)


async def last_turns() -> None:
    """End all other tasks of this loop. A client accepted in the last moment has its transport closed in the loop's
    next turns."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    for _ in range(5):
        await asyncio.sleep(0)
