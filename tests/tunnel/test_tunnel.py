# SPDX-License-Identifier: GPL-2.0-or-later
"""The tunnel of a detour, in real namespaces: two hosts on one switch, one of which has lost its uplink.

    guest - [ho-web1] near [up0] -- [near] switch [far] -- [up0] far
                          [link0] ======================= [link0]
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from appliance import config as cfg
from appliance import tunnel
from appliance.errors import HoldfastError
from appliance.front import Front, FrontSpec
from tests.net.stage import Sniffer, _setns, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
SPEC = FrontSpec("web1", "52:54:00:aa:00:10", ("10.77.9.10",), "br0", 1 << 20)
GUEST, CLIENT = "10.77.9.10", "10.77.9.1"
PLAIN = 0x88B5
_serial = itertools.count()


class Stage:
    """Two hosts, a switch with the client's address, a guest."""

    def __init__(self) -> None:
        self._prefix = f"hftun-{os.getpid()}-{next(_serial)}"
        self._made: list[str] = []
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        for place in ("near", "far", "switch", "guest"):
            run("ip", "netns", "add", self.name(place))
            self._made.append(self.name(place))
            with self.inside(place), open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as knob:
                knob.write("1")
        for place in ("near", "far", "switch"):
            with self.inside(place):
                run("ip", "link", "add", "br0", "type", "bridge")
                run("ip", "link", "set", "br0", "up")
        with self.inside("switch"):
            run("ip", "addr", "add", f"{CLIENT}/24", "dev", "br0")
            for host in ("near", "far"):
                run("ip", "link", "add", host, "type", "veth", "peer", "up0", "netns", self.name(host))
                run("ip", "link", "set", host, "master", "br0", "up")
        with self.inside("near"):
            run("ip", "link", "add", "link0", "type", "veth", "peer", "link0", "netns", self.name("far"))
            run("ip", "link", "add", "ho-web1", "type", "veth", "peer", "g0", "netns", self.name("guest"))
            run("ip", "link", "set", "ho-web1", "master", "br0", "up")
        for host, address in (("near", "169.254.9.1"), ("far", "169.254.9.2")):
            with self.inside(host):
                run("ip", "link", "set", "up0", "master", "br0", "up")
                run("ip", "addr", "add", f"{address}/24", "dev", "link0")
                run("ip", "link", "set", "link0", "up")
        with self.inside("guest"):
            run("ip", "link", "set", "g0", "address", SPEC.mac, "up")
            run("ip", "addr", "add", f"{GUEST}/24", "dev", "g0")

    def name(self, place: str) -> str:
        return f"{self._prefix}-{place}"

    @contextlib.contextmanager
    def inside(self, place: str) -> Iterator[None]:
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        there = os.open(f"/run/netns/{self.name(place)}", os.O_RDONLY)
        try:
            _setns(there)
            yield
        finally:
            _setns(back)
            os.close(there)
            os.close(back)

    def do(self, place: str, work: Callable[[], Awaitable[object]]) -> None:
        """Run a coroutine in a namespace."""

        async def whole() -> None:
            await work()

        with self.inside(place):
            asyncio.run(whole())

    def devices(self, place: str) -> set[str]:
        with self.inside(place):
            return {name for _, name in socket.if_nameindex()}

    def uplink(self, state: str) -> None:
        with self.inside("near"):
            run("ip", "link", "set", "up0", state)

    def ping(self, *words: str) -> bool:
        with self.inside("switch"):
            done = subprocess.run(["ping", "-q", "-c", "2", "-i", "0.1", "-W", "2", *words, GUEST],
                                  capture_output=True, timeout=20)  # fmt: skip
        return done.returncode == 0

    def tear_down(self) -> None:
        _setns(self._home)
        os.close(self._home)
        for name in self._made:
            run("ip", "netns", "del", name)


def link(near: bool) -> cfg.Link:
    ours, theirs = ("169.254.9.1", "169.254.9.2") if near else ("169.254.9.2", "169.254.9.1")
    return cfg.Link(name="link0", interface="link0", address=ours, peer=theirs)


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    try:
        yield made
    finally:
        made.tear_down()


@pytest.fixture
def detour(stage: Stage) -> Stage:
    """The near host has no uplink, and the tunnel stands."""
    stage.uplink("down")
    stage.do("far", lambda: tunnel.far(SPEC, link(False)))
    stage.do("near", lambda: tunnel.near(Front(SPEC), link(True)))
    return stage


def test_frames_of_every_size_pass(detour: Stage) -> None:
    assert detour.ping()
    assert detour.ping("-s", "1472", "-M", "dont"), "longer than the link carries: in fragments"
    assert detour.ping("-s", "9000", "-M", "dont")


def test_a_stream_in_large_segments_passes(detour: Stage) -> None:
    size = 8 << 20
    with detour.inside("guest"):
        server = socket.create_server((GUEST, 0))
    with detour.inside("switch"):
        client = socket.socket()
    server.settimeout(20)
    client.settimeout(20)
    with server, client:
        client.connect(server.getsockname())
        talker, _ = server.accept()
        with talker:
            sender = threading.Thread(target=talker.sendall, args=(bytes(size),), daemon=True)
            sender.start()
            got = 0
            while got < size and (chunk := client.recv(1 << 20)):
                got += len(chunk)
    assert got == size


def test_an_uplink_that_returns_closes_no_loop(detour: Stage) -> None:
    """Each frame that the guest sends to everybody arrives once, whatever the near uplink does."""
    with detour.inside("switch"):
        ear = Sniffer("br0")
    with detour.inside("guest"):
        mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        mouth.bind(("g0", 0))
    detour.uplink("up")
    with ear.socket, mouth:
        heard: list[bytes] = []
        for number in range(50):
            frame = b"\xff" * 6 + bytes.fromhex(SPEC.mac.replace(":", "")) + PLAIN.to_bytes(2, "big")
            mouth.send(frame + number.to_bytes(2, "big") + bytes(46))
        deadline = time.monotonic() + 5
        while len(heard) < 50 and time.monotonic() < deadline:
            heard += ear.take(PLAIN)
        assert detour.ping(), "meanwhile anything that went round would have come by again"
        heard += ear.take(PLAIN)
    assert [int.from_bytes(frame[14:16], "big") for frame in heard] == list(range(50))


def test_home_again(detour: Stage) -> None:
    detour.uplink("up")
    detour.do("near", lambda: tunnel.home(Front(SPEC)))
    detour.do("far", lambda: tunnel.remove(SPEC))
    for place in ("near", "far"):
        assert not {name for name in detour.devices(place) if name[:3] in ("hx-", "hs-")}
    with detour.inside("switch"):
        run("ip", "neigh", "flush", "all")
    with detour.inside("guest"):
        subprocess.run(["ping", "-c", "1", "-W", "2", CLIENT], capture_output=True, timeout=10)  # the switch learns
    assert detour.ping()


def test_what_a_dead_service_left_is_no_hindrance(detour: Stage) -> None:
    for _ in range(2):
        detour.do("far", lambda: tunnel.far(SPEC, link(False)))
        detour.do("near", lambda: tunnel.near(Front(SPEC), link(True)))
    assert detour.ping()
    detour.do("near", lambda: tunnel.remove(SPEC))
    assert "hs-web1" not in detour.devices("near")


def test_a_tunnel_that_cannot_be_made_leaves_nothing(stage: Stage) -> None:
    nowhere = FrontSpec("web1", SPEC.mac, SPEC.ips, "br9", 1 << 20)
    with pytest.raises(HoldfastError, match="no network device br9"):
        stage.do("far", lambda: tunnel.far(nowhere, link(False)))
    assert "hx-web1" not in stage.devices("far")
    other = Front(FrontSpec("web2", "52:54:00:aa:00:11", (), "br0", 1 << 20))  # whose tap is not there
    with pytest.raises(HoldfastError):
        stage.do("near", lambda: tunnel.near(other, link(True)))
    assert not {"hx-web2", "hs-web2"} & stage.devices("near")
    assert stage.ping(), "the guest is where it was"


def test_each_vm_has_its_own_tunnel() -> None:
    numbers = [tunnel.number(f"web{vm}") for vm in range(1000)]
    assert len(set(numbers)) == 1000 and all(0 < number < 1 << 24 for number in numbers)
