# SPDX-License-Identifier: GPL-2.0-or-later
"""The firewall of a service: loaded or said why not, kept, opened with the front, and gone at the end."""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from appliance import config as cfg
from appliance import firewall as module
from appliance.cli import status
from appliance.errors import Unavailable
from appliance.firewall import Firewall
from appliance.front import Front, FrontSpec
from rules.libnftables import NETLINK_NETFILTER
from tests.net.stage import GUEST_MAC, Sniffer, Stage, frame, mac, releasing, run, tap_write
from tests.rules.conftest import nft
from tests.rules.frames import OTHER4, OTHER_MAC, OWN4, OWN6, allowed, arp, eth


def config(**host: object) -> cfg.Config:
    return cfg.Config(
        host=cfg.Host(name="alpha", **host),  # type: ignore[arg-type]
        peer=cfg.Peer(name="beta"),
        link=(cfg.Link(name="l0", interface="link9", address="169.254.9.1", peer="169.254.9.2"),),
        vm={"web1": cfg.Vm(home="alpha", memory=1 << 27, mac=GUEST_MAC, bridge="br0", kernel=Path("/k"),
                           ip=(OWN4, OWN6))})


async def until(what: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


def heard(sniffer: Sniffer, count: int) -> int:
    """How many frames of the VM arrived, waiting for `count`; the host may have something to say of its own."""
    found, deadline = 0, time.monotonic() + 5
    while found < count and time.monotonic() < deadline:
        found += sum(one[6:12] == mac(GUEST_MAC) for one in sniffer.wait(1, None, 0.2))
    return found + sum(one[6:12] == mac(GUEST_MAC) for one in sniffer.take(None))


def tables() -> str:
    return nft("list tables")


@pytest.fixture
def play(stage: Stage) -> Callable[[Callable[[Firewall, Front], Awaitable[None]]], None]:
    """Run a coroutine with a firewall and a shut front on the stage."""
    nft("flush ruleset")
    stage.quiet()

    def play_it(scene: Callable[[Firewall, Front], Awaitable[None]]) -> None:
        async def whole() -> None:
            fronts: list[Front] = []
            firewall = Firewall(config(), lambda: ["web1" for front in fronts if front.is_open])
            await firewall.start()
            fronts.append(await Front.create(FrontSpec("web1", GUEST_MAC, (OWN4, OWN6), "br0", 1 << 24)))
            try:
                await asyncio.wait_for(scene(firewall, fronts[0]), 60)
            finally:
                await fronts[0].close()
                await firewall.close()
            assert tables() == ""

        asyncio.run(whole())

    return play_it


def test_the_front_opens_and_shuts_the_rules_too(stage: Stage, play: Callable[..., None]) -> None:
    """Announcements (RARP, ARP, neighbour advertisement) pass the open front; shut, the set is empty."""
    sniffer = stage.sniff()

    async def scene(firewall: Firewall, front: Front) -> None:
        assert "ho-web1" not in nft("list set bridge holdfast open")
        front.open(1)
        assert "ho-web1" in nft("list set bridge holdfast open")
        front.announce()
        assert heard(sniffer, 4) == 4
        front.shut()
        assert "ho-web1" not in nft("list set bridge holdfast open")
        status = await firewall.status()
        assert status["loaded"] and status["reason"] == "" and status["restored"] == 0
        assert set(status["drops"]["vms"]["web1"].values()) == {0} and status["drops"]["strangers"] == 0

    play(scene)


def test_the_rules_are_a_second_line_behind_the_guard(stage: Stage, play: Callable[..., None]) -> None:
    """A guard that is open by mistake, on a front that is not: still nobody hears it."""
    sniffer = stage.sniff()

    async def scene(firewall: Firewall, front: Front) -> None:
        front.guard.open(1)
        front.announce()
        assert front.guard.stats().passed_frames == 4
        status = await firewall.status()
        assert status["drops"]["vms"]["web1"]["closed"] == 4
        assert heard(sniffer, 0) == 0
        front.open(1)
        front.announce()
        assert heard(sniffer, 4) == 4

    play(scene)


def test_what_a_vm_forges_is_dropped_behind_gate_and_guard(stage: Stage, play: Callable[..., None]) -> None:
    sniffer = stage.sniff()

    async def scene(firewall: Firewall, front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        good = bytes(dict(allowed())["ip4"])
        for sent in (bytes(eth() / arp(2, OTHER4)), frame(b"x", src=OTHER_MAC), frame(b"x"), good):
            tap_write(vm, sent)
        await front.gate.release(front.gate.mark())
        # The good frame is the last: had another passed, it would be here before.
        seen: list[bytes] = []
        while good not in seen:
            more = sniffer.wait(1, None)
            assert more, "the good frame did not pass"
            seen += [one for one in more if mac(OTHER_MAC) in one or mac(GUEST_MAC) in one]
        assert seen == [good]
        assert front.guard.stats().passed_frames == 4
        drops = (await firewall.status())["drops"]["vms"]["web1"]
        assert (drops["arp"], drops["mac"], drops["protocol"]) == (1, 1, 1)
        os.close(vm)

    play(scene)


def test_somebody_flushes_the_ruleset(play: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.02)

    async def scene(firewall: Firewall, front: Front) -> None:
        for count, opened in enumerate((False, True, True, False), 1):
            if opened:
                front.open(count)
            else:
                front.shut()
            nft("flush ruleset")
            await until(lambda count=count: firewall.restored == count)
            await until(lambda opened=opened: ("ho-web1" in nft("list set bridge holdfast open")) is opened)
        nft("add element bridge holdfast open { ho-web1 }")  # a front that is shut
        await until(lambda: "ho-web1" not in nft("list set bridge holdfast open"))
        assert (await firewall.status())["loaded"]

    play(scene)


@pytest.mark.parametrize("loaded", [True, False])
def test_opening_costs_a_takeover_next_to_nothing(play: Callable[..., None], loaded: bool) -> None:
    """Nor does shutting what is shut; without rules neither, though the kernel takes its time to refuse."""

    async def scene(firewall: Firewall, front: Front) -> None:
        if not loaded:
            await firewall.close()
        took: list[float] = []
        for term in range(1, 100):
            for act in (lambda term=term: front.open(term), front.shut, front.shut):
                begun = time.perf_counter()
                act()
                took.append(time.perf_counter() - begun)
        assert statistics.quantiles(took, n=10)[-1] < 0.001

    play(scene)


def test_a_front_without_rules_opens(stage: Stage) -> None:
    nft("flush ruleset")
    stage.quiet()
    sniffer = stage.sniff()

    async def whole() -> None:
        front = await Front.create(FrontSpec("web1", GUEST_MAC, (OWN4, OWN6), "br0", 1 << 24))
        front.open(1)
        front.announce()
        assert heard(sniffer, 4) == 4
        await front.close()
        await front.close()

    asyncio.run(whole())


@pytest.fixture
def no_packet_filter(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without nf_tables."""
    nft("flush ruleset")
    real = socket.socket

    def refuse(family: int = -1, kind: int = -1, proto: int = -1, *more: object) -> socket.socket:
        if family == socket.AF_NETLINK and proto == NETLINK_NETFILTER:
            raise OSError(93, "Protocol not supported")
        return real(family, kind, proto, *more)  # type: ignore[arg-type]

    monkeypatch.setattr("rules.libnftables.socket.socket", refuse)


@pytest.mark.usefixtures("no_packet_filter")
def test_a_missing_packet_filter_is_said(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def whole() -> None:
        firewall = Firewall(config(), list)
        await firewall.start()
        front = await Front.create(FrontSpec("web1", GUEST_MAC, (), "br0", 1 << 24))
        front.open(1)  # the guard alone
        await front.close()
        status = await firewall.status()
        assert status["mode"] == "auto" and not status["loaded"] and "no packet filter" in status["reason"]
        assert "CONFIG_NF_TABLES" in status["reason"]
        assert status["drops"] == {"strangers": 0, "vms": {}} or status["drops"]["vms"]["web1"]["closed"] == 0
        await firewall.close()
        await firewall.close()

    asyncio.run(whole())


@pytest.mark.usefixtures("no_packet_filter")
def test_required_rules_refuse_the_start() -> None:
    async def whole() -> None:
        firewall = Firewall(config(firewall="required"), list)
        with pytest.raises(Unavailable, match="packet filter") as caught:
            await firewall.start()
        assert "CONFIG_NF_TABLES" in caught.value.hint and "host.firewall" in caught.value.hint
        await firewall.close()

    asyncio.run(whole())


def test_off_loads_nothing_and_clears_what_a_dead_service_left(stage: Stage) -> None:
    nft("flush ruleset")

    async def whole() -> None:
        dead = Firewall(config(), list)
        await dead.start()
        assert "bridge holdfast" in tables() and "inet holdfast" in tables()
        firewall = Firewall(config(firewall="off"), list)
        await firewall.start()
        assert tables() == ""
        status = await firewall.status()
        assert status["mode"] == "off" and not status["loaded"] and "configuration" in status["reason"]
        await firewall.close()
        await dead.close()

    asyncio.run(whole())


def test_a_device_name_no_rule_can_hold_is_named(stage: Stage) -> None:
    odd = config(firewall="required")
    link = cfg.Link(name="l0", interface='li"k*', address="169.254.9.1", peer="169.254.9.2")
    odd = cfg.Config(host=odd.host, peer=odd.peer, link=(link,), vm=odd.vm)

    async def whole() -> None:
        firewall = Firewall(odd, list)
        with pytest.raises(Unavailable, match=r'li"k\*'):
            await firewall.start()
        await firewall.close()

    asyncio.run(whole())


def test_a_real_stack_behind_the_rules(stage: Stage) -> None:
    """ARP, neighbour discovery, both versions of ping and long segments, as a guest's kernel sends them."""
    nft("flush ruleset")
    for place in ("host", "client"):
        with stage.inside(place):
            run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=0")
    with stage.inside("client"):
        run("ip", "addr", "replace", "fd77:9::1/64", "dev", "c0", "nodad")
    device = stage.cable_guest()

    async def whole() -> None:
        firewall = Firewall(config(), lambda: ["web1"])
        await firewall.start()
        front = await Front.create(FrontSpec("web1", GUEST_MAC, (OWN4, OWN6), "br0", 1 << 24))
        await front.attach_device(device)
        front.open(1)
        async with releasing(front):
            for place, address in (("client", OWN4), ("client", OWN6), ("guest", "10.77.9.1"), ("guest", "fd77:9::1")):
                ping = ["ip", "netns", "exec", stage.name(place), "ping", "-c2", "-i.2", "-W2", "-s", "3000", address]
                process = await asyncio.create_subprocess_exec(*ping, stdout=asyncio.subprocess.PIPE)
                out, _ = await asyncio.wait_for(process.communicate(), 15)
                assert b" 0% packet loss" in out, out
        drops = (await firewall.status())["drops"]["vms"]["web1"]
        assert set(drops.values()) == {0}, drops
        await front.close()
        await firewall.close()

    asyncio.run(whole())


@pytest.mark.parametrize(("rules", "line"), [
    ({"loaded": True, "reason": "", "drops": {"strangers": 0, "vms": {"web1": {"mac": 0, "ip4": 0}}}}, "loaded"),
    ({"loaded": True, "reason": "", "drops": {"strangers": 2, "vms": {"web1": {"mac": 3, "ip4": 0}}}},
     "loaded          dropped: web1 mac 3  strangers 2"),
    ({"mode": "auto", "loaded": False, "reason": "no packet filter", "drops": {}}, "not loaded      no packet filter"),
    ({"mode": "off", "loaded": False, "reason": "off by the configuration", "drops": {}},
     "off             off by the configuration"),
])
def test_what_people_read_of_the_rules(rules: dict[str, object], line: str) -> None:
    said = status.render({"host": "alpha", "rules": rules})
    assert f"rules           {line}" in said.splitlines()
