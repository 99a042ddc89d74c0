# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of the VM half: nothing may be left behind by any of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leftovers import memory_file_system, no_process_left


def _open() -> set[str]:
    """What this process holds open, but for what Python opens and closes at will."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{entry.name} {os.readlink(entry)}")
        except OSError:
            continue
    return {line for line in found if "/dev/null" not in line and "/proc/" not in line}


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process, device, descriptor or guest memory outlives a test."""
    gc.collect()
    before = _open()
    with no_process_left():
        yield
        gc.collect()
    assert not _open() - before, f"left open: {_open() - before}"
    taps = [name for name in os.listdir("/sys/class/net") if name.startswith(f"hfv{os.getpid() % 1000000}x")]
    assert not taps, f"left behind: {taps}"


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A memory file system of 8 MiB."""
    with memory_file_system(tmp_path / "small", "8m") as place:
        yield place
