# SPDX-License-Identifier: GPL-2.0-or-later
"""A service that is told to stop hands the VM over, leaves nothing behind, and becomes the backup when it is back."""

from __future__ import annotations

import os
import signal

import pytest

from appliance.lab.topology import HOSTS
from tests.pair.pair import Pair

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def test_the_primary_stops(pair: Pair) -> None:
    for _ in HOSTS:
        primary, backup = pair.protected()
        pair.client.goes_on()  # the primary has spoken, however soon this follows the last look at the wire
        _stop(pair, primary)
        pair.client.goes_on()
        assert pair.vm(backup)["role"] == "primary"
        pair.heal(primary)
        assert pair.protected() == (backup, primary)
        pair.sound(primary, backup)


def test_the_backup_stops(pair: Pair) -> None:
    primary, backup = pair.protected()
    term = pair.term()
    _stop(pair, backup)
    pair.client.goes_on()
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    assert pair.term() == term, "its own word was enough: no term had to be asked for"
    pair.sound(primary)


def _stop(pair: Pair, host: str) -> None:
    service = pair.lab.service(host)
    assert service is not None
    words = len(pair.log(host))
    service.signal(signal.SIGTERM)
    pair.dead(host)
    pair.nothing_left(host)
    said = pair.log(host)[words:]
    assert "stopping" in said
    assert not [line for line in said.splitlines() if "Traceback" in line or " ERROR " in line or "CRITICAL" in line]
