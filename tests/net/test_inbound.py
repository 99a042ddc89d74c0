# SPDX-License-Identifier: GPL-2.0-or-later
"""Inbound: what goes to the VM is copied, counted in the order QEMU takes it, and can be replayed."""

import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import Unavailable
from appliance.front import Front
from appliance.inbound import Inbound
from tests.net.stage import CLIENT_MAC, GUEST_MAC, PLAIN, Stage, frame, numbered, tap_read


@pytest.fixture
def client(stage: Stage) -> Iterator[socket.socket]:
    stage.quiet()
    with stage.inside("client"):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.bind(("c0", 0))
    with made:
        yield made


def to_guest(number: int) -> bytes:
    return frame(number.to_bytes(4, "big"), dst=GUEST_MAC, src=CLIENT_MAC)


def wait_seen(inbound: Inbound, seen: int) -> list[bytes]:
    copies: list[bytes] = []
    deadline = time.monotonic() + 5
    while inbound.seen < seen and time.monotonic() < deadline:
        copies += inbound.read()
    return copies


def drain(fd: int) -> list[bytes]:
    frames = []
    try:
        while True:
            frames.append(os.read(fd, 1 << 17))
    except BlockingIOError:
        return frames


def test_copies_are_what_the_vm_gets(client: socket.socket, play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        for number in range(5):
            client.send(to_guest(number))
        copies = wait_seen(front.inbound, 5)
        assert [copy[10:] for copy in copies] == [to_guest(number) for number in range(5)]
        assert [one[12:] for one in drain(vm)] == [to_guest(number) for number in range(5)]
        os.close(vm)

    play(scene)


def test_the_first_read_has_the_first_frame(client: socket.socket, play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        assert not select.select([front.inbound], [], [], 0)[0]
        client.send(to_guest(1))
        assert select.select([front.inbound], [], [], 5)[0]
        assert [copy[10:] for copy in front.inbound.read()] == [to_guest(1)]
        os.close(vm)

    play(scene)


def test_consumed_follows_the_reader(client: socket.socket, play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        for number in range(10):
            client.send(to_guest(number))
        wait_seen(front.inbound, 10)
        assert (front.inbound.seen, front.inbound.consumed()) == (10, 0)
        for _ in range(4):
            tap_read(vm)
        assert (front.inbound.seen, front.inbound.consumed()) == (10, 4)
        drain(vm)
        assert front.inbound.consumed() == 10
        os.close(vm)

    play(scene)


def test_what_the_vm_sends_is_not_copied(client: socket.socket, play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        for one in numbered(0, 5):
            os.write(vm, bytes(12) + one)
        client.send(to_guest(1))
        assert [copy[10:] for copy in wait_seen(front.inbound, 1)] == [to_guest(1)]
        os.close(vm)

    play(scene)


def test_shut_drops_and_counts(stage: Stage, client: socket.socket, play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        noise = front.inbound.stats().closed_frames
        client.send(to_guest(1))
        assert tap_read(vm, timeout=0.1) == b""
        assert front.inbound.stats().closed_frames > noise
        front.open(1)
        client.send(to_guest(2))
        assert tap_read(vm) == to_guest(2)
        front.shut()
        client.send(to_guest(3))
        assert tap_read(vm, timeout=0.1) == b""
        os.close(vm)

    play(scene)


def test_replayed_frames_reach_the_vm_while_shut(client: socket.socket, play: Callable[..., None]) -> None:
    """The copies of one VM, tags and all, are put into the next one's tap before the front opens."""
    plain = frame(b"with a tag", dst=GUEST_MAC, src=CLIENT_MAC)
    tagged = plain[:12] + b"\x81\x00\x00\x05" + plain[12:]

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        client.send(to_guest(7))
        client.send(tagged)
        copies = wait_seen(front.inbound, 2)
        assert copies[1][10:] == tagged
        front.shut()
        os.close(vm)
        vm = await front.attach_vm()
        assert (front.inbound.seen, front.inbound.consumed()) == (0, 0)
        assert front.inbound.inject([*copies, b"short", b"\xff" * 200]) == 2
        assert front.inbound.stats().refused_frames == 2
        assert tap_read(vm) == to_guest(7)
        assert tap_read(vm, 0x8100) == tagged
        assert wait_seen(front.inbound, 2) == copies, "a replay is input like any other"
        assert front.inbound.consumed() == 2
        os.close(vm)

    play(scene)


def test_copies_that_nobody_reads_are_missed_not_kept(
    client: socket.socket, play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.packet.BUFFER_BYTES", 64 << 10)

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        front.open(1)
        for number in range(1000):
            client.send(to_guest(number))
        copies = wait_seen(front.inbound, 1000)
        assert len(copies) < 1000
        assert front.inbound.seen == 1000
        assert front.inbound.stats().missed_frames == 1000 - len(copies)
        assert len([one for one in drain(vm) if one[24:26] == PLAIN.to_bytes(2, "big")]) == 1000
        os.close(vm)

    play(scene)


def test_without_a_vm_there_is_nothing(play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        front.open(1)
        assert front.inbound.read() == [] and front.inbound.consumed() == 0
        with pytest.raises(Unavailable):
            front.inbound.fileno()
        with pytest.raises(Unavailable):
            front.inbound.inject([b""])

    play(scene)
