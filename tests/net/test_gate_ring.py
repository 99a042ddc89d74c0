# SPDX-License-Identifier: GPL-2.0-or-later
"""The ring gate: the conformance suite, and what is special about it."""

import os
import socket
from collections.abc import Callable

import pytest

from appliance.front import Front
from tests.net.gate_conformance import LIMIT_BYTES, GateConformance, Scene
from tests.net.stage import PLAIN, Sniffer, Stage, frame, numbered, numbers, tap_write

ONE_HELD = 4096  # an EtherType of nobody


class RingRig:
    def __init__(self, front: Front, vm: int, sniffer: Sniffer) -> None:
        self.front, self.gate, self._vm, self._sniffer = front, front.gate, vm, sniffer

    def send(self, first: int, count: int, size: int = 60) -> None:
        for one in numbered(first, count, size):
            tap_write(self._vm, one)

    def arrived(self, count: int) -> list[int]:
        return numbers(self._sniffer.wait(count))

    def nothing_more(self) -> bool:
        # A frame of another bridge port takes the same queues to the client: when it is there, all is.
        marker = frame(b"marker", ONE_HELD)
        self._sniffer.other_port.send(marker)  # type: ignore[attr-defined]
        came = self._sniffer.wait(1, None)
        while not any(one[12:14] == ONE_HELD.to_bytes(2, "big") for one in came):
            more = self._sniffer.wait(1, None)
            assert more, "the marker got lost"
            came += more
        return not [one for one in came if one[12:14] == PLAIN.to_bytes(2, "big")]


@pytest.fixture
def play(stage: Stage, play: Callable[..., None]) -> Callable[[Scene], None]:
    sniffer = stage.sniff()
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    port.bind(("br0", 0))
    stage.sockets.append(port)
    sniffer.other_port = port  # type: ignore[attr-defined]

    def play_it(scene: Scene) -> None:
        async def with_rig(front: Front) -> None:
            vm = await front.attach_vm()
            front.open(1)
            try:
                await scene(RingRig(front, vm, sniffer))
            finally:
                os.close(vm)

        play(with_rig, LIMIT_BYTES)

    return play_it


class TestRingGate(GateConformance):
    def test_a_frame_without_a_stamp_is_not_moved(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: RingRig) -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as stranger:
                stranger.bind((rig.front.spec.device("h"), 0))
                stranger.send(frame(b"never went through the gate"))
            rig.send(0, 1)
            assert await rig.gate.release(rig.gate.mark()) == 1
            assert rig.arrived(1) == [0]
            assert rig.gate.stats().foreign_frames == 1

        play(scene)  # type: ignore[arg-type]

    def test_a_frame_that_turns_up_after_the_drop_is_not_moved(self, play: Callable[[Scene], None]) -> None:
        """It was numbered before the drop, but another CPU puts it into the hold only now."""

        async def scene(rig: RingRig) -> None:
            rig.send(0, 5)
            rig.gate.drop()
            late = frame((99).to_bytes(4, "big"))
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as hold:
                hold.bind((rig.front.spec.device("h"), 0))
                hold.send(late[:12] + b"\x88\xa8\x00\x03" + late[12:])
            rig.send(5, 1)
            assert await rig.gate.release(rig.gate.mark()) == 1
            assert rig.arrived(1) == [5] and rig.nothing_more()

        play(scene)  # type: ignore[arg-type]
