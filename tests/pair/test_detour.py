# SPDX-License-Identifier: GPL-2.0-or-later
"""Neither host is whole: one has lost its uplink, the other its disk. The VM stays, and speaks through the other."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.lab import topology
from appliance.lab.blueprint import VM
from appliance.lab.topology import VM_IP
from tests.pair.pair import HOST_DEVICES, Pair, until
from tests.pair.test_uplink import read_only, whole

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def run(pair: Pair, place: str, *words: str) -> None:
    with topology.inside(pair.lab.netns(place)):
        subprocess.run(words, check=True, timeout=20, capture_output=True)


def downloaded(pair: Pair) -> int:
    """Bytes of the file that the guest serves."""
    with topology.inside(pair.lab.netns("client")):
        connection = http.client.HTTPConnection(VM_IP, timeout=20)
        connection.connect()
    with contextlib.closing(connection):
        connection.request("GET", "/blob.bin")
        return len(connection.getresponse().read())


def detour(pair: Pair, host: str) -> dict[str, Any]:
    found: dict[str, Any] = pair.vm(host).get("detour") or {}
    return found


@pytest.fixture
def halves(pair: Pair) -> Iterator[tuple[Pair, str, str]]:
    """A pair whose backup has a dead disk; and primary and backup."""
    whole(pair)
    primary, backup = pair.protected()
    with read_only(pair, backup):
        until("it is known", lambda: (pair.lab.host_status(backup) or {})["condition"]["disk"] is False)
        yield pair, primary, backup
    pair.heal(primary)
    whole(pair)


def test_a_vm_speaks_through_the_other_hosts_uplink(halves: tuple[Pair, str, str]) -> None:
    pair, primary, backup = halves
    term = pair.term()
    pair.lab.fault("uplink-down", primary)
    pair.client.goes_on()
    assert detour(pair, primary)["end"] == "near" and detour(pair, backup)["end"] == "far"
    assert (pair.protected(), pair.term()) == ((primary, backup), term), "it stays, in protection"
    assert downloaded(pair) == 1 << 20, "over a link no wider than the network: both ends are told to send less"
    for host in (primary, backup):
        run(pair, host, "ip", "link", "set", "link0", "mtu", "1600")
    run(pair, "client", "ip", "route", "flush", "cache")
    run(pair, "client", "ping", "-q", "-c", "3", "-i", "0.2", "-s", "1472", "-M", "do", VM_IP)

    pair.lab.fault("link-down:0", primary)  # over the other link then
    pair.client.goes_on()
    until("it goes over the other link", lambda: detour(pair, primary).get("link") == "link1")
    pair.client.goes_on()

    pair.heal(primary)
    until("the detour is over", lambda: not detour(pair, primary) and not detour(pair, backup))
    pair.client.goes_on()
    assert (pair.protected(), pair.term()) == ((primary, backup), term)
    assert not [name for host in (primary, backup) for name in pair.devices(host) if name[:3] in ("hx-", "hs-")]
    pair.sound()


def test_the_host_that_lends_its_uplink_dies(halves: tuple[Pair, str, str]) -> None:
    """Nobody hears the VM then; with the host, or with the own uplink, it is back."""
    pair, primary, backup = halves
    pair.lab.fault("uplink-down", primary)
    pair.client.goes_on()
    pair.lab.fault("service-kill", backup)
    until("the near end is closed", lambda: not detour(pair, primary))
    pair.heal(primary)
    pair.client.goes_on()
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    stale = f"hx-{VM}"
    until("what it left is gone", lambda: stale not in pair.devices(backup))
    assert pair.devices(backup) > HOST_DEVICES
    pair.sound()
