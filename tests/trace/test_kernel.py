# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel itself drops, and what a socket sends again: asked of a real one, about frames in real namespaces."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.errors import UsageError
from appliance.trace import notes
from appliance.trace.decode import summary
from appliance.trace.event import Event, Frame
from appliance.trace.kernel import Kernel
from ebpf import BpfError, drops
from tests.net.stage import CLIENT_MAC, GUEST_MAC, Stage, mac, run
from tests.trace.events import HOST, VM

pytestmark = pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="needs BTF of the kernel")
HEADER = (Path(__file__).resolve().parents[2] / "ebpf" / "common.h").read_text()
ASKED_FOR = bytes.fromhex("4500001c00010000401166cd0a4d090a0a4d0963" "1234003500080000")


def begin(netns: int, *ips: str) -> notes.Begin:
    vm = notes.VmBegin(vm=VM, source=0, mac=GUEST_MAC, ips=list(ips), term=1, phase="solo", past=[], issued=0, acked=0,
                       whole=0)
    return notes.Begin(schema="", host=HOST, peer="", boot="", netns=netns, ring=0, monotonic_ns=0, unix_ns=0, vms=[vm])


@pytest.fixture
def ask(stage: Stage) -> Iterator[Callable[..., Kernel]]:
    stage.quiet()
    asked: list[Kernel] = []

    def make(place: str, *ips: str) -> Kernel:
        with stage.inside(place):
            asked.append(Kernel(begin(os.stat("/proc/thread-self/ns/net").st_ino, *ips)))
        return asked[-1]

    yield make
    for one in asked:
        one.close()


def send(stage: Stage, place: str, device: str, frame: bytes) -> None:
    with stage.inside(place), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as out:
        out.bind((device, 0))
        out.send(frame)


def seen(kernel: Kernel, kind: type[Event] = Frame, seconds: float = 20.0) -> list[Event]:
    """What it tells of that kind, once there is some, or at the deadline."""
    events: list[Event] = []
    deadline = time.monotonic() + seconds
    while not events and time.monotonic() < deadline:
        events += [event for _, event in kernel.events() if isinstance(event, kind)]
        time.sleep(0.01)
    return events


def test_both_sides_mean_the_same() -> None:
    assert f"sizeof(struct hf_kernel) == {drops.RECORD.size}," in HEADER
    found = re.search(r"sizeof\(struct hf_asked\) == (\d+) \+ (\d+) \* HF_ASKED", HEADER)
    assert found and f"#define HF_ASKED {drops.ASKED} " in HEADER
    assert ctypes.sizeof(drops.Asked) == int(found[1]) + int(found[2]) * drops.ASKED


def test_a_frame_that_is_not_for_the_client(stage: Stage, ask: Callable[..., Kernel]) -> None:
    """Of this VM, to an address that the client does not have: its kernel says why it is no use to it."""
    kernel = ask("client")
    stranger = mac(CLIENT_MAC) + mac("52:54:00:aa:00:77") + b"\x08\x00" + ASKED_FOR
    send(stage, "host", "up0", stranger)
    send(stage, "host", "up0", mac(CLIENT_MAC) + mac(GUEST_MAC) + b"\x08\x00" + ASKED_FOR)
    (lost,) = seen(kernel)
    assert isinstance(lost, Frame) and (lost.point, lost.vm, lost.verdict) == ("lost", VM, 2)
    assert re.fullmatch(r"[a-z0-9_-]+@[a-z0-9_.]+", lost.cause), lost.cause
    assert summary(lost.snap) == "10.77.9.10.4660 > 10.77.9.99.53 udp 0" and lost.snap[6:12] == mac(GUEST_MAC)


def test_another_namespace_is_not_looked_at(stage: Stage, ask: Callable[..., Kernel]) -> None:
    elsewhere, here = ask("host"), ask("client")
    send(stage, "host", "up0", mac(CLIENT_MAC) + mac(GUEST_MAC) + b"\x08\x00" + ASKED_FOR)
    assert seen(here) and not list(elsewhere.events())


def test_a_connection_that_nobody_answers(stage: Stage, ask: Callable[..., Kernel]) -> None:
    """The client's SYN is sent again after a second: the frame itself may have got lost anywhere."""
    kernel = ask("client", "fd77:9::10", "10.77.9.10")
    with stage.inside("client"):
        run("ip", "neigh", "add", "10.77.9.10", "lladdr", GUEST_MAC, "dev", "c0")
        caller = socket.socket()
    with caller:
        caller.setblocking(False)
        caller.connect_ex(("10.77.9.10", 80))
        again = seen(kernel, notes.Happened)[0]
        assert isinstance(again, notes.Happened) and again.event == "tcp-retransmit"
        assert again.fields == {"from": f"10.77.9.1.{caller.getsockname()[1]}", "to": "10.77.9.10.80"}


def test_nothing_is_left_of_it(stage: Stage) -> None:
    probe = drops.Drops([drops.Vm(mac(GUEST_MAC))], 0)
    probe.close()
    probe.close()
    send(stage, "host", "up0", mac(CLIENT_MAC) + mac(GUEST_MAC) + b"\x08\x00" + ASKED_FOR)
    assert probe._asked.lost == 0 and not probe._links


def test_a_kernel_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "_BTF", Path("/nonexistent"))
    with pytest.raises(BpfError, match="no BTF") as refused:
        drops.Drops([], 0)
    assert "CONFIG_DEBUG_INFO_BTF" in refused.value.hint
    with pytest.raises(BpfError, match="too many"):
        drops.Drops([drops.Vm(b"")] * 17, 0)


def test_what_is_lost_is_not_known_without_asking() -> None:
    from types import SimpleNamespace

    from appliance.trace.show import _select

    args = SimpleNamespace(point=frozenset(["lost"]), write=None, kernel=False, epoch=None, min_hold=None)
    with pytest.raises(UsageError, match="--kernel"):
        _select(SimpleNamespace(args=args), "", None)  # type: ignore[arg-type]
