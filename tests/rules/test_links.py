# SPDX-License-Identifier: GPL-2.0-or-later
"""Only the peer's address, on the link's own interface, reaches the ports of the links and the tunnel."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from rules.policy import Link, Policy
from rules.tables import Tables
from tests.net.stage import Stage, run
from tests.rules.conftest import nft

PORT, TUNNEL = 7780, 4789
HOST = {4: "169.254.9.1", 6: "fd99::1"}
PEER = {4: "169.254.9.2", 6: "fd99::2"}
STRANGER = {4: "169.254.9.3", 6: "fd99::3"}
ELSEWHERE = {4: "10.77.9.7", 6: "fd77:9::7"}  # the host on the production network
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
WAYS = [(version, kind, port) for version in (4, 6) for kind, port in (("tcp", PORT), ("udp", PORT), ("udp", TUNNEL))]


@pytest.fixture(scope="module")
def linked(stage: Stage) -> Iterator[Tables]:
    """A cable from the host to the client's namespace, where the peer lives, and a stranger."""
    run("ip", "link", "add", "link9", "type", "veth", "peer", "p9", "netns", stage.name("client"))
    for version, length in ((4, "24"), (6, "64")):
        extra = ["nodad"] if version == 6 else []
        run("ip", "addr", "add", f"{HOST[version]}/{length}", "dev", "link9", *extra)
        run("ip", "addr", "add", f"{ELSEWHERE[version]}/{length}", "dev", "br0", *extra)
        with stage.inside("client"):
            for address in (PEER, STRANGER):
                run("ip", "addr", "add", f"{address[version]}/{length}", "dev", "p9", *extra)
    run("ip", "link", "set", "link9", "up")
    with stage.inside("client"):
        run("ip", "link", "set", "p9", "up")
    tables = Tables(Policy(tuple(Link("link9", HOST[version], PEER[version], PORT) for version in (4, 6)), ()))
    tables.load()
    try:
        yield tables
    finally:
        tables.close()


def reaches(stage: Stage, version: int, kind: str, port: int, source: str, target: str) -> bool:
    """Does what `source` (in the client's namespace) sends to `target` and `port` of the host get there?"""
    stream = kind == "tcp"
    with socket.socket(FAMILY[version], socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("", port))
        with stage.inside("client"):
            client = socket.socket(FAMILY[version], socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        with client:
            client.bind((source, 0))
            if stream:
                server.listen()
                client.setblocking(False)
                client.connect_ex((target, port))
            else:
                client.sendto(b"hello", (target, port))
            # Nothing else is on these cables: what is not there now, or after one try more, was dropped.
            return bool(select.select([server], [], [], 0.3)[0])


@pytest.mark.parametrize(("version", "kind", "port"), WAYS)
def test_the_peer_gets_through(
    stage: Stage, linked: Tables, version: int, kind: str, port: int
) -> None:
    linked.load()
    assert reaches(stage, version, kind, port, PEER[version], HOST[version])
    reading = linked.read()
    assert reading is not None and reading.strangers == 0


@pytest.mark.parametrize("where", ["stranger on the link", "peer's address to another of ours", "production network"])
@pytest.mark.parametrize(("version", "kind", "port"), WAYS)
def test_nobody_else_does(
    stage: Stage, linked: Tables, version: int, kind: str, port: int, where: str
) -> None:
    source, target = {
        "stranger on the link": (STRANGER[version], HOST[version]),
        "peer's address to another of ours": (PEER[version], ELSEWHERE[version]),
        "production network": (f"{'10.77.9.1' if version == 4 else 'fd77:9::1'}", ELSEWHERE[version]),
    }[where]
    if where.startswith("peer"):
        with stage.inside("client"):  # over the link, to an address that is not the link's
            run("ip", f"-{version}", "route", "replace", target, "dev", "p9", "via", HOST[version])
    try:
        linked.load()
        assert not reaches(stage, version, kind, port, source, target)
        reading = linked.read()
        assert reading is not None and reading.strangers >= 1
        nft("flush chain inet holdfast links")
        assert reaches(stage, version, kind, port, source, target), "the rule is what stopped it"
    finally:
        if where.startswith("peer"):
            with stage.inside("client"):
                run("ip", f"-{version}", "route", "del", target, "dev", "p9")


def test_the_peers_address_on_another_interface_is_a_stranger(stage: Stage, linked: Tables) -> None:
    """Forged on the production network, for the link's own address."""
    with stage.inside("client"):
        run("ip", "route", "replace", HOST[4], "dev", "c0", "via", ELSEWHERE[4])
    run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/br0/rp_filter; echo 0 > /proc/sys/net/ipv4/conf/all/rp_filter")
    try:
        linked.load()
        assert not reaches(stage, 4, "udp", TUNNEL, PEER[4], HOST[4])
        reading = linked.read()
        assert reading is not None and reading.strangers == 1
        nft("flush chain inet holdfast links")
        assert reaches(stage, 4, "udp", TUNNEL, PEER[4], HOST[4])
    finally:
        with stage.inside("client"):
            run("ip", "route", "del", HOST[4], "dev", "c0")


def test_other_ports_are_not_our_business(stage: Stage, linked: Tables) -> None:
    linked.load()
    assert reaches(stage, 4, "tcp", 7779, STRANGER[4], HOST[4])
    assert reaches(stage, 6, "udp", 7781, STRANGER[6], HOST[6])
