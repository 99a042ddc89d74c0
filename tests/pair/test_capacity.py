# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that cannot carry a VM does not get it: said with the reason, and over as soon as it can."""

from __future__ import annotations

import os

import pytest

from appliance import control
from appliance.errors import HoldfastError
from appliance.lab import blueprint
from appliance.lab.blueprint import VM
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def restarted(pair: Pair, host: str, limit: str) -> None:
    """With so much memory for its VMs."""
    config = pair.lab.directory / host / "config" / "holdfast.toml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("memory_limit")]
    lines.insert(lines.index("[host]") + 1, f'memory_limit = "{limit}"')
    config.write_text("\n".join(lines) + "\n")
    pair.lab.fault("service-kill", host)
    pair.heal(host)


def test_a_host_without_the_memory_gets_no_replica(pair: Pair) -> None:
    primary, backup = pair.protected()
    restarted(pair, backup, "64MiB")
    until(f"{primary} says why", lambda: f"{backup} has 64MiB of memory for VMs" in str(pair.vm(primary).get("reason")))
    vm = pair.vm(primary)
    assert vm["phase"] == "solo" and [problem["level"] for problem in vm["capacity"]] == ["refuse"]
    with pytest.raises(HoldfastError):
        control.call(blueprint.control_path(pair.lab.name, primary), "switchover", vm=VM, timeout=30)
    pair.client.goes_on()
    restarted(pair, backup, "0B")
    assert pair.protected() == (primary, backup)
    pair.sound(primary)
