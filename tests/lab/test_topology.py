# SPDX-License-Identifier: GPL-2.0-or-later
"""The network of a lab: who reaches whom, and that none of it shows outside."""

import os
import socket
import time
from collections.abc import Callable

import pytest

from appliance.errors import Unavailable, UsageError
from appliance.lab import topology
from appliance.lab.lab import Lab
from tests.lab.conftest import inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_a_network_is_made_at_once_and_outside_nothing_changes(names: Callable[[], str]) -> None:
    before = socket.if_nameindex()
    name = names()
    began = time.monotonic()
    topology.create(name)
    assert time.monotonic() - began < 10  # 0.2 s on an idle machine
    assert socket.if_nameindex() == before
    assert topology.remove(name) == [topology.netns(name, place) for place in topology.PLACES]
    assert topology.remove(name) == []
    assert socket.if_nameindex() == before


def test_both_cables_join_the_hosts(lab: Lab) -> None:
    for link in (0, 1):
        for host, other in (("alpha", "beta"), ("beta", "alpha")):
            assert "1 received" in inside(lab, host, "ping", "-c1", "-W2", topology.link_address(link, other))


def test_the_switch_joins_hosts_and_client(lab: Lab) -> None:
    inside(lab, "beta", "ip", "address", "add", "10.77.0.99/24", "dev", "br0")
    assert "1 received" in inside(lab, "client", "ping", "-c1", "-W2", "10.77.0.99")
    inside(lab, "beta", "ip", "address", "add", "fd77::99/64", "dev", "br0")
    assert "1 received" in inside(lab, "client", "ping", "-6", "-c1", "-W2", "fd77::99")


def test_addresses_work_without_delay(lab: Lab) -> None:
    for place in ("alpha", "beta", "client"):
        assert "tentative" not in inside(lab, place, "ip", "-6", "address")
        settings = inside(lab, place, "sh", "-c", "cat /proc/sys/net/ipv6/conf/*/accept_dad")
        assert set(settings.split()) <= {"0", "-1"}  # -1: a loopback never does it
    with topology.inside(lab.netns("client")):
        probe = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    with probe:
        probe.bind((topology.CLIENT_IP6, 0))


@pytest.mark.parametrize(("place", "bridge"), [("alpha", "br0"), ("beta", "br0"), ("switch", "switch")])
def test_a_bridge_forwards_at_once_and_keeps_its_mac(lab: Lab, place: str, bridge: str) -> None:
    def setting(name: str) -> str:
        return inside(lab, place, "cat", f"/sys/class/net/{bridge}/{name}").strip()

    assert (setting("bridge/stp_state"), setting("bridge/forward_delay")) == ("0", "0")
    assert setting("bridge/ageing_time") == "30000"
    mac = setting("address")
    inside(lab, place, "ip", "link", "add", "port0", "address", "02:00:00:00:00:00", "type", "bridge")
    for port in inside(lab, place, "ls", f"/sys/class/net/{bridge}/brif").split():
        inside(lab, place, "ip", "link", "set", port, "nomaster")
    assert setting("address") == mac


def test_two_labs_do_not_see_each_other(lab: Lab, names: Callable[[], str]) -> None:
    other = names()
    topology.create(other)
    inside(lab, "alpha", "ip", "address", "add", "10.77.0.99/24", "dev", "br0")
    with topology.inside(topology.netns(other, "client")):
        probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    with probe, pytest.raises(OSError):
        probe.settimeout(0.3)
        probe.connect(("10.77.0.99", 9))
    topology.remove(other)
    assert "1 received" in inside(lab, "client", "ping", "-c1", "-W2", "10.77.0.99")


def test_a_thread_is_back_home_after_a_visit_even_a_failed_one(lab: Lab) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with pytest.raises(ZeroDivisionError), topology.inside(lab.netns("client")):
        assert os.stat("/proc/thread-self/ns/net").st_ino != home
        raise ZeroDivisionError
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    with pytest.raises(Unavailable, match="no namespace"), topology.inside("hf-nowhere"):
        pass
    with pytest.raises(UsageError, match="gamma"):
        lab.netns("gamma")
