# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of two real hosts through the life of a pair: loaded, in nobody's way, and open on one host only."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.lab import topology
from appliance.lab.blueprint import Options
from appliance.lab.lab import down
from appliance.lab.topology import HOSTS, LINKS, VM_IP, VM_IP6
from rules.libnftables import Nftables
from tests.pair.pair import Pair, until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def pair() -> Iterator[Pair]:
    name = f"rules{os.getpid()}"
    made = Pair.up(Options(name=name))
    try:
        yield made
    finally:
        made.down()
        down(name)


def rules(pair: Pair, host: str) -> dict[str, Any]:
    reply = pair.lab.host_status(host)
    assert reply is not None
    found: dict[str, Any] = reply["rules"]
    return found


def listed(pair: Pair, host: str, what: str) -> str:
    with topology.inside(pair.lab.netns(host)), Nftables() as nft:
        return nft.run(f"list {what}")


def open_on(pair: Pair) -> list[str]:
    return [host for host in HOSTS if "ho-" in listed(pair, host, "set bridge holdfast open")]


def nothing_was_dropped(pair: Pair) -> None:
    for host in HOSTS:
        said = rules(pair, host)
        assert said["loaded"] and said["reason"] == "" and said["restored"] == 0
        (drops,) = said["drops"]["vms"].values()
        assert said["drops"]["strangers"] == 0 and not any(drops.values()), (host, said)


def test_the_rules_go_with_the_vm(pair: Pair) -> None:
    primary, backup = pair.protected()
    assert open_on(pair) == [primary]
    for address in (VM_IP, VM_IP6):  # ARP and neighbour discovery go through the rules
        ping = pair.lab.command("client", ["ping", "-c2", "-i.2", "-W5", "-s", "3000", address])
        said = subprocess.run(ping, capture_output=True, text=True, timeout=30).stdout
        assert re.search(r"\b0% packet loss", said), said
    nothing_was_dropped(pair)

    pair.lab.fault("crash", primary)
    until(f"{backup} takes over", lambda: pair.vm(backup).get("role") == "primary")
    pair.client.goes_on()
    # The table of the dead service is still there, and says nothing may be sent that is not there any more.
    pair.nothing_left(primary)
    assert "table bridge holdfast" in listed(pair, primary, "tables")
    pair.heal(primary)
    assert pair.protected() == (backup, primary)
    assert open_on(pair) == [backup]
    nothing_was_dropped(pair)
    pair.sound(primary, backup)


def test_a_stranger_on_a_link_is_not_let_in(pair: Pair) -> None:
    primary, backup = pair.protected()
    with topology.inside(pair.lab.netns(primary)):
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        subprocess.run(["ip", "addr", "add", "169.254.77.77/24", "dev", LINKS[0]], check=True, timeout=10)
    with contextlib.closing(stranger):
        stranger.bind(("169.254.77.77", 0))
        for port in (7780, 4789):
            stranger.sendto(b"hello", (topology.link_address(0, backup), port))
    until("both are counted", lambda: rules(pair, backup)["drops"]["strangers"] == 2)
    assert pair.protected() == (primary, backup)


def test_a_service_that_stops_leaves_no_rules(pair: Pair) -> None:
    _, backup = pair.protected()
    service = pair.lab.service(backup)
    assert service is not None
    os.kill(service.pid, 15)
    pair.nothing_left(backup)
    assert "holdfast" not in listed(pair, backup, "tables")


def test_rules_that_somebody_flushes_come_back(pair: Pair) -> None:
    primary, backup = pair.protected()
    for host in HOSTS:
        with topology.inside(pair.lab.netns(host)), Nftables() as nft:
            nft.run("flush ruleset")
    until("both are restored", lambda: all(rules(pair, host)["restored"] == 1 for host in HOSTS))
    assert open_on(pair) == [primary]
    assert pair.protected() == (primary, backup)
    pair.sound(primary)
