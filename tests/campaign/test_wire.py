# SPDX-License-Identifier: GPL-2.0-or-later
"""The capture at a real switch: which host said what, and no frame of anybody else."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import HoldfastError
from appliance.lab import topology
from appliance.lab.blueprint import Options
from appliance.lab.campaign_judge import Speech, turns, voices
from appliance.lab.lab import Lab
from appliance.lab.topology import UPLINK, VM_MAC
from appliance.lab.wire import Frame, Wire, speakers
from tests.campaign.test_judge import tcp
from tests.lab.conftest import image, lab, names, until

__all__ = ["image", "lab", "names"]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MAC = bytes.fromhex(VM_MAC.replace(":", ""))
TO_ALL = b"\xff" * 6


class Mouths:
    """Lets hosts send frames as if they ran the VM."""

    def __init__(self, lab: Lab) -> None:
        self._sockets = {host: _socket(lab, host, UPLINK) for host in topology.HOSTS}
        self._sockets["client"] = _socket(lab, "client", "eth0")

    def say(self, host: str, frame: bytes, source: bytes = MAC) -> None:
        self._sockets[host].send(TO_ALL + source + frame[12:])

    def close(self) -> None:
        for sock in self._sockets.values():
            sock.close()


def _socket(lab: Lab, place: str, device: str) -> socket.socket:
    with topology.inside(lab.netns(place)):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.bind((device, 0))
    return made


@pytest.fixture
def wire(lab: Lab) -> Iterator[Wire]:
    made = Wire(lab)
    yield made
    made.close()


@pytest.fixture
def mouths(lab: Lab) -> Iterator[Mouths]:
    made = Mouths(lab)
    yield made
    made.close()


def frames_of(wire: Wire, count: int) -> list[Frame]:
    """The next `count` frames."""
    found: list[Frame] = []

    def enough() -> bool:
        found.extend(wire.take())
        return len(found) >= count

    until(enough)
    return found


def test_who_spoke_is_known_by_the_port(wire: Wire, mouths: Mouths) -> None:
    for host in ("alpha", "alpha", "beta", "alpha"):
        mouths.say(host, tcp(host, 0.0, 5).head)
    mouths.say("beta", tcp("beta", 0.0, 5).head, source=bytes(6))
    mouths.say("client", tcp("beta", 0.0, 5).head)
    found = frames_of(wire, 4)
    assert speakers(found) == ["alpha", "beta", "alpha"] and len(found) == 4
    assert abs(found[0].at - time.time()) < 30
    assert voices(turns(found), None), "two spoke within a moment"


def test_words_that_do_not_fit_are_found_on_the_wire(wire: Wire, mouths: Mouths) -> None:
    mouths.say("alpha", tcp("alpha", 0.0, 500, payload=b":7\r\n").head)
    found = frames_of(wire, 1)
    mouths.say("beta", tcp("beta", 0.0, 490, payload=b":6\r\n").head)
    found += frames_of(wire, 1)
    speech = Speech()
    speech.hear(found)
    assert speech.early == 2, speech.findings


def test_it_listens_for_long(wire: Wire, mouths: Mouths) -> None:
    """More than the kernel's buffer holds, while nobody looks."""
    many, frame = 3000, tcp("alpha", 0.0, 5, payload=bytes(1000)).head
    for _ in range(many):
        mouths.say("alpha", frame)
    assert len(frames_of(wire, many)) == many


def test_a_frame_that_was_missed_is_told(wire: Wire, mouths: Mouths, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.close()  # its thread
    with pytest.raises(OSError):
        wire.take()
    lost = iter([b"\1\0\0\0\2\0\0\0", b"\0" * 8])
    monkeypatch.setattr(wire, "_sockets", {host: _Deaf(lost) for host in topology.HOSTS})
    with pytest.raises(HoldfastError, match="the capture at alpha missed 2 frames"):
        wire.take()


class _Deaf:
    """A socket that has nothing, and lost what it is told."""

    def __init__(self, lost: Iterator[bytes]) -> None:
        self._lost = lost

    def recvmsg(self, *_: int) -> None:
        raise BlockingIOError

    def getsockopt(self, *_: int) -> bytes:
        return next(self._lost)

    def close(self) -> None:
        pass


def test_a_lab_that_went_away(names: Callable[[], str], image: os.PathLike[str]) -> None:
    gone = Lab.create(Options(name=names(), kernel=str(image), qemu="python3"))
    gone.down()
    with pytest.raises(HoldfastError):
        Wire(gone)
