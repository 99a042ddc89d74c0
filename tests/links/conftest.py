# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of links and peers: cables, and hosts that end with the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import config as cfg
from tests.links.cables import Cables
from tests.links.host import Host, both_up

QUICK = cfg.Timing(hello=0.02, timeout=0.4, reconnect=0.02)
PATIENT = cfg.Timing(hello=0.02, timeout=60.0, reconnect=0.02)
"""Where silence is not the point: however busy the machine is, nobody is taken for dead."""


@pytest.fixture
def cables() -> Iterator[Cables]:
    if os.geteuid():
        pytest.skip("needs root")
    laid = Cables()
    try:
        laid.lay()
        yield laid
    finally:
        laid.take_away()
    left = [name for name in laid.namespaces.values() if Path("/run/netns", name).exists()]
    assert not left, f"left behind: {left}"


@pytest.fixture
def host(cables: Cables) -> Iterator[Callable[..., Host]]:
    """Makes hosts: host("alpha", timing=…). None may have met a defect when the test ends."""
    made: list[Host] = []

    def make(place: str, timing: cfg.Timing = PATIENT, **more: Any) -> Host:
        made.append(Host(cables, place, timing, **more))
        return made[-1].start()

    yield make
    for each in made:
        each.stop()
    assert not [defect for each in made for defect in each.defects]


@pytest.fixture
def pair(host: Callable[..., Host]) -> Callable[..., tuple[Host, Host]]:
    """Makes alpha and beta, joined over both links."""

    def make(timing: cfg.Timing = PATIENT, **more: Any) -> tuple[Host, Host]:
        hosts = host("beta", timing, **more), host("alpha", timing, **more)
        both_up(*hosts)
        return hosts[1], hosts[0]

    return make
