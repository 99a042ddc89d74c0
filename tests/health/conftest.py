# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the health tests: an event loop that runs to a moment, and a host with a bridge and a neighbour."""

from __future__ import annotations

import os
from collections.abc import Iterator

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
