# SPDX-License-Identifier: GPL-2.0-or-later
"""The packet programs, loaded, and a front between real namespaces, for one test."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.net.conftest import play, stage
from tests.trace.kernel import Programs

__all__ = ["play", "programs", "stage"]


@pytest.fixture
def programs() -> Iterator[Programs]:
    if os.geteuid():
        pytest.skip("needs root")
    made = Programs()
    yield made
    made.close()
