# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the health tests: a host with a bridge and a neighbour."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from tests.net.stage import Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A host with `br0`, its uplink `up0`, and a neighbour 10.77.9.1 behind it; the test runs in the host."""
    if os.geteuid():
        pytest.skip("needs root")
    made = Stage()
    try:
        made.build()
        made.quiet()
        yield made
    finally:
        made.tear_down()


def until(what: str, holds: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)
