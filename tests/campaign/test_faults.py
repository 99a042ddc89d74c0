# SPDX-License-Identifier: GPL-2.0-or-later
"""The faults that the campaign adds: a partition, the power loss of both hosts, a service armed from outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import UsageError
from appliance.lab import faults, topology
from appliance.lab.lab import Lab
from appliance.lab.processes import Process
from appliance.lab.topology import HOSTS, LINKS
from tests.lab.conftest import image, lab, names, sleeper, until

__all__ = ["image", "lab", "names", "sleeper"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Sleeper = Callable[..., Process]


def cut(lab: Lab) -> dict[str, list[str]]:
    return {host: found["cables_cut"] for host, found in lab.status()["hosts"].items()}


def test_a_partition_leaves_the_uplinks_alone(lab: Lab) -> None:
    lab.fault("both-links", "beta")
    assert cut(lab) == {"alpha": [], "beta": list(LINKS)}


def test_both_hosts_lose_power(lab: Lab, sleeper: Sleeper) -> None:
    victims = [sleeper(lab, host) for host in HOSTS]
    spared = [sleeper(lab, "client"), sleeper(lab, "beta", stranger=True)]
    faults.power_loss(lab.name)
    until(lambda: not any(victim.alive for victim in victims))
    assert all(process.alive for process in spared)
    assert cut(lab) == dict.fromkeys(HOSTS, list(topology.cables(lab.name)))


def test_a_service_is_armed_by_a_file_that_appears_whole(lab: Lab) -> None:
    where = Path(faults.injectable(lab.name, "alpha")["HOLDFAST_INJECT"].removeprefix("@"))
    faults.arm(lab.name, "alpha", "epoch.sent:kill:3")
    assert where.read_text() == "epoch.sent:kill:3"
    assert faults.injectable(lab.name, "beta") != faults.injectable(lab.name, "alpha")


@pytest.mark.parametrize("text", ["meteor:kill", "epoch.sent:explode", "epoch.sent:kill:0", ""])
def test_what_cannot_be_injected_is_refused_at_once(lab: Lab, text: str) -> None:
    with pytest.raises(UsageError, match="use POINT"):
        faults.arm(lab.name, "alpha", text)
    assert not Path(faults.injectable(lab.name, "alpha")["HOLDFAST_INJECT"].removeprefix("@")).exists()
