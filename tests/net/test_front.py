# SPDX-License-Identifier: GPL-2.0-or-later
"""The whole front with a real TCP stack behind it: what leaves is right at the receiver, or does not leave."""

import asyncio
import hashlib
import os
import socket
import struct
import time
from collections.abc import Callable

import pytest

from appliance.errors import Unavailable
from appliance.front import Front, FrontSpec
from appliance.tap import open_tap
from tests.net.stage import (
    CLIENT_MAC,
    GUEST_MAC,
    PLAIN,
    Stage,
    frame,
    mac,
    numbered,
    numbers,
    releasing,
    run,
    tap_read,
    tap_write,
)

SENT = bytes(range(256)) * 16384  # 4 MiB


async def transfer(stage: Stage, sender: str, receiver: str, address: str) -> bytes:
    """SHA-256 of what `receiver` (listening on `address`) got of `SENT`."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with stage.inside(receiver):
        listener = socket.create_server((address, 5001), family=family)
    with stage.inside(sender):
        talker = socket.socket(family)
    digest = hashlib.sha256()

    async def receive() -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        taken, _ = await loop.sock_accept(listener)
        with taken:
            while block := await loop.sock_recv(taken, 1 << 18):
                digest.update(block)

    async def send() -> None:
        loop = asyncio.get_running_loop()
        talker.setblocking(False)
        with talker:
            await loop.sock_connect(talker, (address, 5001))
            await loop.sock_sendall(talker, SENT)

    with listener:
        await asyncio.wait_for(asyncio.gather(receive(), send()), 30)
    return digest.digest()


@pytest.mark.parametrize(
    ("sender", "receiver", "address"),
    [
        ("guest", "client", "10.77.9.1"),
        ("guest", "client", "fd77:9::1"),
        ("client", "guest", "10.77.9.10"),
        ("client", "guest", "fd77:9::10"),
    ],
)
def test_bulk_tcp_arrives_whole_and_right(
    stage: Stage, play: Callable[..., None], sender: str, receiver: str, address: str
) -> None:
    """Segments of many KiB pass gate and guard as one frame; ARP or neighbour discovery comes first."""
    device = stage.cable_guest()
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        await front.attach_device(device)
        front.open(1)
        async with releasing(front):
            got = await transfer(stage, sender, receiver, address)
        assert got == hashlib.sha256(SENT).digest()
        stats, guard = front.gate.stats(), front.guard.stats()
        assert stats.lost_frames == stats.overflow_frames == stats.foreign_frames == 0
        assert guard.early_frames == guard.unstamped_frames == 0
        if sender == "guest":
            longest = max(map(len, sniffer.take(None)))
            assert longest > 20000, f"the longest frame that arrived has {longest} bytes"

    play(scene)


def test_a_real_ping_finds_its_way(stage: Stage, play: Callable[..., None]) -> None:
    device = stage.cable_guest()

    async def scene(front: Front) -> None:
        await front.attach_device(device)
        front.open(1)
        async with releasing(front):
            for address in ("10.77.9.10", "fd77:9::10"):
                ping = ["ip", "netns", "exec", stage.name("client"), "ping", "-c2", "-i.2", "-W2", address]
                process = await asyncio.create_subprocess_exec(*ping, stdout=asyncio.subprocess.PIPE)
                out, _ = await asyncio.wait_for(process.communicate(), 10)
                assert b" 0% packet loss" in out, out

    play(scene)


@pytest.mark.parametrize("tag", [b"\x81\x00\x20\x05", b"\x88\xa8\x00\x07"], ids=["802.1Q", "802.1ad"])
def test_the_guests_own_vlan_tag_survives(stage: Stage, play: Callable[..., None], tag: bytes) -> None:
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        plain = frame(b"tagged by the guest")
        tap_write(vm, plain[:12] + tag + plain[12:])
        await front.gate.release(front.gate.mark())
        assert sniffer.wait(1, int.from_bytes(tag[:2], "big")) == [plain[:12] + tag + plain[12:]]
        os.close(vm)

    play(scene)


def test_tagged_segments_arrive_right(stage: Stage, play: Callable[..., None]) -> None:
    """A long segment under two tags: a kernel may cut it up, and all its pieces carry one number then."""
    stage.quiet()
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        payload = os.urandom(7000)
        source, target = socket.inet_aton("10.77.9.10"), socket.inet_aton("10.77.9.1")
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + len(payload), 1, 0, 64, 6, 0, source, target)
        pseudo = sum(struct.unpack("!6H", source + target + struct.pack("!HH", 6, 20 + len(payload))))
        pseudo = (pseudo & 0xFFFF) + (pseudo >> 16)
        tcp = struct.pack("!HHIIBBHHH", 1, 2, 3, 4, 0x50, 0x10, 100, pseudo, 0)
        ethernet = mac(CLIENT_MAC) + mac(GUEST_MAC) + b"\x81\x00\x00\x05\x08\x00"
        header = struct.pack("=BBHHHHH", 1, 1, 58, 1448, 38, 16, 0)  # unfinished checksum, TCPv4 segments
        os.write(vm, header + ethernet + ip + tcp + payload)
        tap_write(vm, frame(b"the next number"))
        mark = front.gate.mark()
        assert mark.seq == 2
        moved = await front.gate.release(mark)
        assert front.gate.held_bytes() == 0
        arrived = sniffer.wait(moved, None)
        pieces = [one for one in arrived if one[12:14] == b"\x81\x00"]
        assert b"".join(piece[58:] for piece in pieces) == payload
        assert any(b"the next number" in one for one in arrived)
        assert front.guard.stats().early_frames == 0
        os.close(vm)

    play(scene)


def test_announcements_pass_and_say_the_truth(stage: Stage, play: Callable[..., None]) -> None:
    from scapy.layers.inet6 import ICMPv6ND_NA, IPv6
    from scapy.layers.l2 import ARP, Ether

    stage.quiet()
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        front.announce()
        front.open(1)
        front.guard.commit(70000)
        front.announce()
        seen = [Ether(one) for one in sniffer.wait(4, None)]
        assert all(one.src == GUEST_MAC for one in seen) and len(seen) == 4, "shut, nothing is announced"
        rarp, request, reply, advert = seen
        assert rarp.type == 0x8035 and rarp.dst == "ff:ff:ff:ff:ff:ff"
        for one, operation in ((request, 1), (reply, 2)):
            assert one[ARP].op == operation and one[ARP].hwsrc == GUEST_MAC
            assert one[ARP].psrc == one[ARP].pdst == "10.77.9.10"
        assert advert[ICMPv6ND_NA].tgt == "fd77:9::10" and advert[ICMPv6ND_NA].O == 1
        told = advert[ICMPv6ND_NA].cksum
        again = Ether(bytes(advert)[: 14 + 40 + advert[IPv6].plen])
        del again[ICMPv6ND_NA].cksum
        assert Ether(bytes(again))[ICMPv6ND_NA].cksum == told

    play(scene)


def test_an_announcement_corrects_a_neighbour(stage: Stage, play: Callable[..., None]) -> None:
    with stage.inside("client"):
        for address in ("10.77.9.10", "fd77:9::10"):
            run("ip", "neigh", "add", address, "lladdr", "52:54:00:de:ad:01", "dev", "c0", "nud", "stale")

    async def scene(front: Front) -> None:
        front.open(1)
        front.announce()
        known, deadline = "", time.monotonic() + 5
        while known.count(GUEST_MAC) < 2 and time.monotonic() < deadline:
            with stage.inside("client"):
                known = run("ip", "neigh", "show", "dev", "c0")
        assert known.count(GUEST_MAC) == 2, known

    play(scene)


def test_the_hold_tap_gone_means_nothing_passes(stage: Stage, play: Callable[..., None]) -> None:
    stage.quiet()
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        run("ip", "link", "del", front.spec.device("h"))
        for one in numbered(0, 5):
            tap_write(vm, one)
        with pytest.raises(Unavailable, match="the hold tap is gone"):
            await front.gate.release(front.gate.mark())
        front.announce()  # the way out is still there: its frames flush what could have leaked
        assert [one[12:14] for one in sniffer.wait(4, None)].count(PLAIN.to_bytes(2, "big")) == 0
        os.close(vm)

    play(scene)


def test_without_the_service_nothing_passes(stage: Stage) -> None:
    """The VM tap outlives the service for as long as QEMU does; its frames go nowhere."""
    sniffer = stage.sniff()

    async def scene() -> None:
        front = await Front.create(FrontSpec("web1", GUEST_MAC, (), "br0", 1 << 20))
        vm = await front.attach_vm()
        front.open(1)
        front._undo.close()  # what the kernel does with the descriptors of a killed process
        assert front.spec.device("v") in stage.devices()
        for one in numbered(0, 5):
            tap_write(vm, one)
        marker = frame(b"marker")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as port:
            port.bind(("br0", 0))
            port.send(marker)
        assert sniffer.wait(1) == [marker]
        os.close(vm)

    asyncio.run(scene())


def test_a_new_vm_takes_the_place_of_the_old(stage: Stage, play: Callable[..., None]) -> None:
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        old = await front.attach_vm()
        tap_write(old, numbered(1, 1)[0])
        new = await front.attach_vm()
        with pytest.raises(OSError):
            tap_write(old, numbered(2, 1)[0])
        front.gate.drop()
        front.open(2)
        tap_write(new, numbered(3, 1)[0])
        await front.gate.release(front.gate.mark())
        assert numbers(sniffer.wait(1)) == [3]
        with stage.inside("client"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as client:
            client.bind(("c0", 0))
            client.send(frame(b"for the VM", dst=GUEST_MAC, src=CLIENT_MAC))
        assert b"for the VM" in tap_read(new)
        os.close(old)
        os.close(new)

    play(scene)


def test_the_bridge_keeps_its_mac(stage: Stage, play: Callable[..., None]) -> None:
    before = run("ip", "-br", "link", "show", "br0").split()[2]

    async def scene(front: Front) -> None:
        run("ip", "link", "set", "up0", "nomaster")
        assert run("ip", "-br", "link", "show", "br0").split()[2] == before

    play(scene)


@pytest.mark.parametrize("bridge", ["nosuch", "up0"])
def test_a_front_that_cannot_be_made_leaves_nothing(stage: Stage, bridge: str) -> None:
    with pytest.raises(Unavailable, match=bridge) as caught:
        asyncio.run(Front.create(FrontSpec("web1", GUEST_MAC, (), bridge, 1 << 20)))
    assert caught.value.hint


def test_a_name_in_use_is_named(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.front._NAME_TIMEOUT", 0.05)
    taken = open_tap("ho-web1")
    with pytest.raises(Unavailable, match="ho-web1 .* in use"):
        asyncio.run(Front.create(FrontSpec("web1", GUEST_MAC, (), "br0", 1 << 20)))
    os.close(taken)


def test_device_names_fit_and_differ() -> None:
    names = {
        FrontSpec(vm, GUEST_MAC, (), "br0", 1).device("v")
        for vm in ("web1", "twelve-chars", "a-rather-long-name-1", "a-rather-long-name-2")
    }
    assert len(names) == 4 and max(map(len, names)) <= 15
    assert "hv-twelve-chars" in names
