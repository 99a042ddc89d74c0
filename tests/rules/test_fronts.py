# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM may send passes, and each forbidden kind is dropped by the one rule that is there for it."""

from __future__ import annotations

import pytest
from scapy.packet import Packet

from appliance.announce import announcements
from rules.latch import Latch
from rules.policy import Policy
from rules.tables import Tables
from tests.net.stage import GUEST_MAC, run, tap_write
from tests.rules.conftest import DEVICE, LINK, Scene, nft, station
from tests.rules.frames import OTHER4, OTHER6, OWN4, OWN6, OWN_LL, advert, allowed, cut_off, eth, forbidden


def wire(frame: Packet) -> bytes:
    return bytes(frame)


@pytest.mark.parametrize("frame", [pytest.param(frame, id=name) for name, frame in allowed()])
def test_what_a_vm_may_send_passes(scene: Scene, frame: Packet) -> None:
    scene.tables.load([DEVICE])
    assert scene.passes(wire(frame))


@pytest.mark.parametrize(("why", "frame"), [pytest.param(why, frame, id=name) for name, why, frame in forbidden()])
def test_what_a_vm_may_not_send_is_dropped_and_counted(scene: Scene, why: str, frame: Packet) -> None:
    scene.tables.load([DEVICE])
    assert not scene.passes(wire(frame))
    assert scene.dropped(why) == 1
    # The rule is what stopped it: without it, the same frame passes.
    nft(f"flush chain bridge holdfast drop_{why}; add rule bridge holdfast drop_{why} accept")
    assert scene.passes(wire(frame))


@pytest.mark.parametrize(("why", "frame"), [pytest.param(why, frame, id=name) for name, why, frame in cut_off()])
def test_a_header_that_is_cut_off_passes_nothing(scene: Scene, why: str, frame: Packet) -> None:
    scene.tables.load([DEVICE])
    assert not scene.passes(wire(frame))
    assert scene.dropped(why) == 1


@pytest.mark.parametrize("name", ["ip4", "arp reply", "ip6", "neighbour advertisement"])
def test_a_shut_front_reaches_nobody(scene: Scene, name: str) -> None:
    frame = wire(dict(allowed())[name])
    scene.tables.load()
    assert not scene.passes(frame) and scene.dropped("closed") == 1
    scene.tables.load()
    nft("flush chain bridge holdfast drop_closed; add rule bridge holdfast drop_closed accept")
    assert scene.passes(frame)


def test_a_front_without_addresses_may_use_any_but_only_its_mac(scene: Scene) -> None:
    scene.tables = Tables(Policy((), (station(),)))
    cases = {name: wire(frame) for name, why, frame in forbidden() if why != "mac"}
    stopped = [name for name, frame in cases.items() if not _loaded(scene).passes(frame)]
    assert not stopped
    assert not _loaded(scene).passes(wire(next(frame for _, why, frame in forbidden() if why == "mac")))


def _loaded(scene: Scene) -> Scene:
    scene.tables.load([DEVICE])
    return scene


def test_a_link_local_address_that_is_configured_is_the_only_one(scene: Scene) -> None:
    scene.tables = Tables(Policy((), (station(OWN4, OWN6, OWN_LL),)))
    assert _loaded(scene).passes(wire(eth() / advert(OWN_LL, OWN_LL)))
    assert not _loaded(scene).passes(wire(eth() / advert("fe80::1", OWN6)))
    assert not _loaded(scene).passes(wire(eth() / advert(OWN6, "fe80::1")))


def test_an_address_of_one_vm_is_not_anothers(scene: Scene) -> None:
    other = type(station())("other", "ho-other", "52:54:00:aa:00:99", (OTHER4, OTHER6))
    scene.tables = Tables(Policy((LINK,), (station(OWN4, OWN6), other)))
    frames = {name: wire(frame) for name, why, frame in forbidden() if why in ("ip4", "ip6", "arp", "mac")}
    assert not [name for name, frame in frames.items() if _loaded(scene).passes(frame)]


def test_our_own_announcements_pass(scene: Scene) -> None:
    frames = announcements(GUEST_MAC, (OWN4, OWN6))
    assert len(frames) == 4
    for frame in frames:
        assert _loaded(scene).passes(frame)


def test_the_latch_moves_one_front(scene: Scene) -> None:
    scene.tables.load()
    frame = wire(dict(allowed())["ip4"])
    latch = Latch(DEVICE)
    for opened in (True, True, False, False, True):
        latch.set(opened)
        reading = scene.tables.read()
        assert reading is not None and (DEVICE in reading.opened) is opened
    tap_write(scene.tap, frame)
    seen: list[bytes] = []
    while frame not in seen:
        more = scene.client.wait(1, 0x0800)
        assert more, "it did not pass"
        seen += more
    latch.set(False)
    tap_write(scene.tap, frame)
    reading = scene.tables.read()
    assert reading is not None and reading.vms["web1"]["closed"] == 1
    scene.tables.remove()
    latch.set(True)  # without rules there is nothing to move
    latch.close()


def test_a_front_that_is_moved_to_another_bridge_is_judged_there_too(scene: Scene) -> None:
    run("ip", "link", "add", "br9", "type", "bridge")
    run("ip", "link", "set", "br9", "up")
    try:
        for device in (DEVICE, "up0"):
            run("ip", "link", "set", device, "master", "br9")
        assert _loaded(scene).passes(wire(dict(allowed())["arp reply"]))
        assert not _loaded(scene).passes(wire(next(frame for _, why, frame in forbidden() if why == "arp")))
        assert scene.dropped("arp") == 1
    finally:
        for device in (DEVICE, "up0"):
            run("ip", "link", "set", device, "master", "br0")
        run("ip", "link", "del", "br9")
