# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of the VM half: nothing may be left behind by any of them."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest


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
    before, others = _open(), set(psutil.Process().children(recursive=True))
    yield
    gc.collect()
    children = [child for child in psutil.Process().children(recursive=True) if child not in others]
    assert not children, f"left behind: {children}"
    assert not _open() - before, f"left open: {_open() - before}"
    taps = [name for name in os.listdir("/sys/class/net") if name.startswith(f"hfv{os.getpid() % 1000000}x")]
    assert not taps, f"left behind: {taps}"


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A memory file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "holdfast-test", place], check=True, timeout=10)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)
