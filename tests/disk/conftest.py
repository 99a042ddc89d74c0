# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of disks: nothing may be left behind by any of them."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # the machine may be busy: no time is asserted
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process outlives a test."""
    yield
    children = psutil.Process().children(recursive=True)
    assert not children, f"left behind: {children}"


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "holdfast-test", place], check=True, timeout=10)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True, timeout=10)
