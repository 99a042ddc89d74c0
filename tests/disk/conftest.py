# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of disks: nothing may be left behind by any of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.leftovers import memory_file_system, no_process_left

settings.register_profile("no deadline", deadline=None)  # the machine may be busy: no time is asserted
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No process outlives a test."""
    with no_process_left():
        yield


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    with memory_file_system(tmp_path / "small", "2m") as place:
        yield place
