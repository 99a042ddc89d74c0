# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace from the VM tap to the screen: real frames, the real gate and guard, the control socket, the command."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import control
from appliance.cli import main
from appliance.errors import Unreachable
from appliance.exits import Exit
from appliance.front import Front, FrontSpec
from appliance.trace import capture, notes
from appliance.trace.event import Frame
from ebpf.trace import SLOTS, Ring
from tests.net.stage import CLIENT_MAC, GUEST_MAC, PLAIN, Stage, frame, mac
from tests.trace.service import VM, Service

Play = Callable[[Callable[[Service], Awaitable[None]]], None]
UDP = bytes.fromhex("4500001e000100004011 0000 0a4d090a 0a4d0901 1234 0035 000a 0000 6869".replace(" ", ""))


@pytest.fixture
def serve(stage: Stage, play: Callable[..., None], tmp_path: Path) -> Play:
    stage.quiet()

    def run(scene: Callable[[Service], Awaitable[None]]) -> None:
        async def with_service(front: Front) -> None:
            async with Service.running(front, tmp_path) as service:
                await scene(service)
                assert await service_is_quiet(service)

        play(with_service)

    return run


async def service_is_quiet(service: Service) -> bool:
    """Nobody traces any more, so the programs are not asked to tell."""
    for _ in range(200):
        if not service.tracing.active and not service.trail.listeners:
            break
        await asyncio.sleep(0.01)
    return not any(word.trace for word in service.front.slots._words)


def udp() -> bytes:
    return mac(CLIENT_MAC) + mac(GUEST_MAC) + b"\x08\x00" + UDP


def test_columns(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        await service.epoch(udp())
        async with service.command("trace", VM, "-v", "--count", "4", "udp"):
            await service.epoch(frame(b"not asked for"), udp())
            await service.epoch(udp())

    serve(scene)
    said = capsys.readouterr()
    head, *rows = said.out.splitlines()
    assert head.split() == ["TIME", "EPOCH.SEQ", "POINT", "HOLD_MS", "EPOCH", "XFER", "ACK", "OUT", "CAUSE", "LEN",
                            "PACKET"]
    assert [row.split()[1:3] for row in rows] == [["2.2", "held"], ["2.2", "released"], ["3.1", "held"],
                                                  ["3.1", "released"]]
    assert rows[1].split()[-6:] == ["ack", "44", "10.77.9.10.4660", ">", "10.77.9.1.53", "udp", "2"][-6:]
    assert "run in the kernel" in said.err and "4 events, 0 lost" in said.err


def test_json_lines(serve: Play, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    async def scene(service: Service) -> None:
        service.open()
        async with service.command("trace", "-j", "--count", "2", "--point", "released"):
            await service.epoch(udp(), frame(b"x"))

    serve(scene)
    things = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert things[0]["schema"] == "holdfast.trace/1" and things[-1]["kind"] == "end"
    frames = [thing for thing in things if thing["kind"] == "frame"]
    assert [one["point"] for one in frames] == ["released"] * 2
    first = frames[0]
    assert (first["epoch"], first["seq"], first["bytes"], first["cause"]) == (1, 1, 44, "ack")
    assert sum(first["waits"].values()) == first["hold_ns"] > 0 and first["lost_before"] == 0, "zeros are shown"
    assert first["summary"] == "10.77.9.10.4660 > 10.77.9.1.53 udp 2"
    kinds = {thing["kind"] for thing in things}
    assert {"begin", "marked", "sent", "acked", "frame", "end"} <= kinds


def test_a_capture_has_each_frame_once_unless_all_is_asked_for(serve: Play, tmp_path: Path) -> None:
    once, every = tmp_path / "once.pcapng", tmp_path / "all.pcapng"

    async def scene(service: Service) -> None:
        service.open()
        async with (service.command("trace", "-w", str(once), "--duration", "500ms", "udp"),
                    service.command("trace", "-w", str(every), "--point", "all", "--duration", "500ms", "udp")):
            await service.epoch(udp())

    serve(scene)
    points = [[event.point for event in capture.load([path]).events if isinstance(event, Frame)]
              for path in (once, every)]
    assert points == [["released"], ["held", "released"]]
    assert main(["trace", "audit", str(every), "-j"]) == Exit.OK


def test_the_guards_reasons(serve: Play, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Frames are written to the out tap behind the gate's back."""
    out = tmp_path / "out.pcapng"

    def write(service: Service, tag: bytes) -> None:
        plain = frame(b"early bird")
        os.write(service.front._out, bytes(12) + plain[:12] + tag + plain[12:])

    async def scene(service: Service) -> None:
        async with service.command("trace", "--count", "5", "-w", str(out)):
            write(service, b"\x88\xa8\x00\x01")  # fenced: no term is open
            service.open()
            write(service, b"\x88\xa8\x00\x01")  # early: nothing is committed
            write(service, b"\x81\x00\x00\x05")  # the guest's own tag is no stamp
            service.front.guard.lease(time.monotonic() - 1)
            write(service, b"\x88\xa8\x00\x01")  # expired
            service.front.guard.lease(time.monotonic() + 60)
            service.front.guard.commit(1)
            write(service, b"\x88\xa8\x00\x01")

    serve(scene)
    frames = [event for event in capture.load([out]).events if isinstance(event, Frame)]
    assert [(one.point, one.cause) for one in frames] == [
        ("fenced", "no-term"), ("dropped", "early"), ("dropped", "unstamped"), ("dropped", "expired"),
        ("released", "none")]
    assert frames[2].snap[12:16] == b"\x81\x00\x00\x05", "a tag beside the frame is put back"
    capsys.readouterr()
    assert main(["trace", "audit", str(out)]) == Exit.FAILED
    assert "did not run alone" in capsys.readouterr().out


def test_what_is_held_and_thrown_away(serve: Play, tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"

    async def scene(service: Service) -> None:
        service.open()
        async with service.command("trace", "-w", str(out), "--count", "2", "udp"):
            service.send(udp(), udp())
            await asyncio.sleep(0.2)
            left, sent = service.front.gate.span()
            service.front.gate.drop()
            service.trail.dropped(left + 1, sent, "the host is fenced")

    serve(scene)
    frames = [event for event in capture.load([out]).events if isinstance(event, Frame)]
    assert [(one.point, one.name, one.cause) for one in frames] == [
        ("discarded", "1.1", "the host is fenced"), ("discarded", "1.2", "the host is fenced")]
    assert all(one.hold_ns and one.hold_ns > 0 and one.snap == udp() for one in frames)


def test_what_this_host_sends_itself_is_told_apart(serve: Play, tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"

    async def scene(service: Service) -> None:
        service.open()
        points = "released,replayed,announced"
        async with service.command("trace", "-w", str(out), "--duration", "500ms", "--point", points):
            await service.epoch(frame(b"before"))
            service.front.announce()
            service.front.send_again([bytes(10) + frame(b"again")])
            await service.epoch(frame(b"after"))

    serve(scene)
    points = [event.point for event in capture.load([out]).events if isinstance(event, Frame)]
    assert points[0] == points[-1] == "released" and points.count("replayed") == 1
    assert set(points[1:-2]) == {"announced"} and points[-2] == "replayed"


def sender(stage: Stage) -> socket.socket:
    """Sends frames from the client's device."""
    with stage.inside("client"):
        client = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    stage.sockets.append(client)
    client.bind(("c0", 0))
    return client


def test_inbound(serve: Play, stage: Stage, tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"

    async def scene(service: Service) -> None:
        client = sender(stage)
        asked = frame(b"?", dst="ff:ff:ff:ff:ff:ff", src=CLIENT_MAC)
        async with service.command("trace", "-w", str(out), "--count", "3", f"ether proto {PLAIN}"):
            client.send(asked)
            await asyncio.sleep(0.1)
            service.open()
            client.send(asked)
            client.send(asked[:12] + b"\x81\x00\x00\x07" + asked[12:])
            await asyncio.sleep(0.1)
            client.send(asked)

    serve(scene)
    frames = [event for event in capture.load([out]).events if isinstance(event, Frame)]
    assert [(one.point, one.cause) for one in frames] == [("refused", "shut"), ("received", ""), ("received", "")]


def test_a_filter_on_a_tag_that_is_beside_the_frame(serve: Play, stage: Stage, tmp_path: Path) -> None:
    """The kernel keeps the tag of what comes in beside the frame; a filter sees it where the wire has it."""
    out = tmp_path / "out.pcapng"

    async def scene(service: Service) -> None:
        client = sender(stage)
        asked = frame(b"?", dst="ff:ff:ff:ff:ff:ff", src=CLIENT_MAC)
        service.open()
        words = f"vlan 7 and ether proto {PLAIN} and ether[18] = 0x3f"
        async with service.command("trace", "-w", str(out), "--count", "1", words):
            client.send(asked)
            client.send(asked[:12] + b"\x81\x00\x00\x08" + asked[12:])
            client.send(asked[:12] + b"\x81\x00\x00\x07" + asked[12:])

    serve(scene)
    (one,) = [event for event in capture.load([out]).events if isinstance(event, Frame)]
    assert one.snap[12:18] == b"\x81\x00\x00\x07" + PLAIN.to_bytes(2, "big") and one.size == 64


def test_a_filter_too_long_for_the_kernel_is_run_here(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    words = " or ".join(["udp", *(f"host 10.0.{at}.{at}" for at in range(60))])

    async def scene(service: Service) -> None:
        service.open()
        async with service.command("trace", "--count", "2", words):
            await service.epoch(frame(b"other"), udp())

    serve(scene)
    said = capsys.readouterr()
    assert "too long for the kernel" in said.err
    assert [line.split()[1] for line in said.out.splitlines()[1:]] == ["1.2", "1.2"]


def test_in_the_shell(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        words = ["shell", "--control", str(service.path), "-c", "trace web1 --count 2 udp; trace epochs web1 -c 1"]
        running = asyncio.ensure_future(asyncio.to_thread(main, words))
        while not running.done():
            if service.trail.listeners:
                await service.epoch(udp())
            await asyncio.sleep(0.1)
        assert await running == Exit.OK

    serve(scene)
    lines = capsys.readouterr().out.splitlines()
    (held, name), (released, same) = [line.split()[2:0:-1] for line in lines if " udp " in line]
    assert (held, released) == ("held", "released") and name == same
    assert lines[-2].split()[1] == "EPOCH" and lines[-1].split()[1].isdigit()


def test_what_is_asked_for_of_epochs_and_holds(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        async with service.command("trace", "--duration", "500ms", "--epoch", "2-3", "--min-hold", "30ms"):
            for number in range(4):
                service.send(udp())
                await asyncio.sleep(0.05 if number == 1 else 0)
                await service.commit(service.pause())

    serve(scene)
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[1:3] for row in rows] == [["2.1", "released"]]


def test_epochs(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        running = asyncio.ensure_future(asyncio.to_thread(
            main, ["trace", "epochs", VM, "-c", "2", "-j", "--control", str(service.path)]))
        await service.traced()
        await service.epoch(udp())
        await service.epoch()
        assert await running == Exit.OK
        assert not service.tracing.active, "epochs alone need no ring"

    serve(scene)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [one["epoch"] for one in found] == [1, 2]
    assert found[0]["schema"] == "holdfast.trace-epochs/1" and found[0]["committed"] is True
    assert found[0]["ack_ns"] > 0 and found[0]["pause_ns"] is None


def test_explain_the_next(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        running = asyncio.ensure_future(asyncio.to_thread(
            main, ["trace", "explain", "next", VM, "udp", "--control", str(service.path)]))
        await service.traced()
        await service.epoch(udp())
        assert await running == Exit.OK

    serve(scene)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("web1 1.1 of term 1: 44 bytes, 10.77.9.10.4660 > 10.77.9.1.53 udp 2")
    whats = [line[26:].split()[2] for line in said[1:-1]]
    assert whats == ["held", "epoch", "transferred", "acknowledged", "released"]
    assert said[-1].startswith("released after ") and "for the acknowledgement" in said[-1]


def test_an_audit_as_it_goes_on(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        for guilty in (False, True):
            running = asyncio.ensure_future(asyncio.to_thread(
                main, ["trace", "audit", "--live", "--duration", "500ms", "--control", str(service.path)]))
            await service.traced()
            await service.epoch(udp())
            if guilty:
                service.send(udp())
                await service.front.gate.release(service.front.gate.mark())  # before anybody acknowledged it
            assert await running == (Exit.FAILED if guilty else Exit.OK)
            assert await service_is_quiet(service)

    serve(scene)
    said = capsys.readouterr()
    assert "proven: 1 frames left (1 ack)" in said.out and "refuted: 2 frames left (1 ack, 1 none)" in said.out
    assert "was not acknowledged" in said.err, "told as it happens"


def test_a_service_that_ends_ends_the_trace(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    async def scene(service: Service) -> None:
        service.open()
        async with service.command("trace", f"ether proto {PLAIN}", code=Exit.UNREACHABLE):
            await service.epoch(frame(b"last"))
            await asyncio.sleep(0.1)
            await service.stop()

    serve(scene)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3 and "2 events, 0 lost; " in said.err


def test_a_slow_tracer_loses_events_and_says_so(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    """A ring far too small: the gate does not notice, the trace says what is missing."""

    async def scene(service: Service) -> None:
        service.open()
        words = ("-j", "--buffer", "64KiB", "--duration", "500ms", f"ether proto {PLAIN}")
        async with service.command("trace", *words):
            await service.epoch(*[frame(b"many")] * 2000)
            assert service.front.gate.stats().released_frames == 2000
            await asyncio.sleep(0.2)
            await service.epoch(frame(b"one more"))

    serve(scene)
    things = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    end, frames = things[-1], [thing for thing in things if thing["kind"] == "frame"]
    assert end["lost_frames"] > 0 and end["frames"] == len(frames) == 4002 - end["lost_frames"]
    assert frames[-1]["lost_before"] == end["lost_frames"]


def test_a_service_that_stands_still_hides_nothing(serve: Play, capsys: pytest.CaptureFixture[str]) -> None:
    """That is what one traces for: frames are shown although the service says nothing."""
    ended: list[float] = []

    async def scene(service: Service) -> None:
        service.open()
        words = ["trace", "--point", "dropped", "--count", "1", "--control", str(service.path)]

        def command() -> int:
            code = main(words)
            ended.append(time.monotonic())
            return code

        running = asyncio.ensure_future(asyncio.to_thread(command))
        await service.traced()
        await asyncio.sleep(0.2)
        plain = frame(b"early bird")
        os.write(service.front._out, bytes(12) + plain[:12] + b"\x88\xa8\x00\x01" + plain[12:])
        time.sleep(3.5)  # noqa: ASYNC251
        awake = time.monotonic()
        assert await running == Exit.OK
        assert ended[0] < awake, "it waited for the service"

    serve(scene)
    assert " dropped " in capsys.readouterr().out


def test_two_vms(stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One ring has the frames of both; each is told by its name."""
    stage.quiet()

    async def scene() -> None:
        spec = FrontSpec("web2", "52:54:00:aa:00:20", ("10.77.9.20",), "br0", 1 << 20)
        first = await Front.create(FrontSpec(VM, GUEST_MAC, ("10.77.9.10",), "br0", 1 << 20))
        second = await Front.create(spec)
        try:
            async with Service.running(first, tmp_path, second) as service:
                service.open()
                words = ("trace", "--count", "2", "--point", "released,fenced", f"ether proto {PLAIN}")
                async with service.command(*words):
                    plain = frame(b"of the second")
                    os.write(second._out, bytes(12) + plain[:12] + b"\x88\xa8\x00\x01" + plain[12:])
                    await service.epoch(frame(b"of the first"))
        finally:
            await second.close()
            await first.close()

    asyncio.run(scene())
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["TIME", "VM", "EPOCH.SEQ"]
    assert [row.split()[1:4] for row in rows] == [["web2", "0.1", "fenced"], ["web1", "1.1", "released"]]


def test_no_more_than_there_are_slots(serve: Play) -> None:
    async def scene(service: Service) -> None:
        streams = [service.tracing.stream({}, lambda item: True) for _ in range(SLOTS)]
        for stream in streams:
            await anext(stream)
        assert service.tracing.active == SLOTS
        assert await asyncio.to_thread(main, ["trace", "--control", str(service.path)]) == Exit.DEGRADED
        await streams.pop().aclose()
        one = service.tracing.stream({}, lambda item: True)
        await anext(one)
        for stream in (*streams, one):
            await stream.aclose()

    serve(scene)


@pytest.mark.parametrize("args", [
    {"vm": "nobody"}, {"snap": 5000}, {"ring_bytes": 12345}, {"ring_bytes": 1 << 40}, {"filter": [[1, 2, 3]]},
    {"filter": [[70000, 0, 0, 0]]}, {"filter": [[6, 0, 0, 0]] * 200}, {"points": -1}, {"unknown": 1}, {"vm": 5},
])  # fmt: skip
def test_what_the_service_is_not_asked(serve: Play, args: dict[str, object]) -> None:
    async def scene(service: Service) -> None:
        with pytest.raises(Exception, match=".") as refused:
            await asyncio.to_thread(lambda: next(control.stream(service.path, "trace", **args)))
        assert type(refused.value).__name__ in ("UsageError", "BadData")

    serve(scene)


def test_notes_that_nobody_fetches_are_bounded(serve: Play) -> None:
    """A client that does not read: what the kernel does not take is lost, counted, and costs the service nothing."""

    async def scene(service: Service) -> None:
        stream = control.stream(service.path, "trace")
        await asyncio.to_thread(next, stream)
        await asyncio.sleep(0.1)
        for number in range(100_000):
            service.trail.acked(1, number, 1.0)
        told = lost = 0
        while told + lost < 100_000:
            item = await asyncio.to_thread(next, stream)
            told, lost = told + len(item["notes"]), max(lost, item["lost_notes"])
        stream.close()  # type: ignore[attr-defined]
        assert told + lost == 100_000 and lost > 1000 and told > 1000

    serve(scene)


def test_what_was_said_is_known_although_the_service_dies(serve: Play) -> None:
    """A note is with the kernel before its consequences are: nothing that the frames depend on is lost."""

    async def scene(service: Service) -> None:
        stream = control.stream(service.path, "trace")
        await asyncio.to_thread(next, stream)
        await asyncio.sleep(0.1)
        with contextlib.suppress(StopIteration, Unreachable):
            service.trail.acked(1, 7, 1.0)
            for client in service._control._clients:
                client.cancel()  # before the event loop has had another turn
            while True:
                item = await asyncio.to_thread(next, stream, None)
                if item is None or any(note["epoch"] == 7 for note in item["notes"]):
                    break
        assert item is not None

    serve(scene)


def test_only_root_sees_packets_but_epochs_are_for_the_group() -> None:
    from appliance import registry
    from appliance.registry import Access

    assert registry.access("trace") is Access.ROOT
    assert registry.access("trace-epochs") is Access.GROUP


def test_epochs_for_the_group_have_no_frames(serve: Play) -> None:
    async def scene(service: Service) -> None:
        said: list[str] = []

        def push(item: dict[str, Any]) -> bool:
            said.extend(note["kind"] for note in item["notes"])
            return True

        stream = service.tracing.epochs({"vm": VM, "frames": True}, push)
        begin = await anext(stream)
        assert begin["ring"] == 0 and not any(word.trace for word in service.front.slots._words)
        service.trail.copies("injected", "replay", [bytes(10) + udp()])
        service.trail.acked(1, 1, 1.0)
        await anext(stream)
        await stream.aclose()
        assert said == ["acked"]

    serve(scene)


def test_a_ring_that_is_not_there() -> None:
    from ebpf import BpfError

    with pytest.raises(BpfError, match="cannot be opened"):
        Ring.open(0xFFFFFFF0)


def test_a_capture_goes_on_to_standard_output(serve: Play, tmp_path: Path) -> None:
    """As in `holdfast trace -w - | tshark -r -`."""
    root, out = Path(__file__).resolve().parents[2], tmp_path / "out"

    async def scene(service: Service) -> None:
        service.open()
        command = f"{sys.executable} -m appliance.cli trace -w - --count 2 --control {service.path} > {out}"
        process = await asyncio.create_subprocess_shell(command, stderr=subprocess.PIPE, cwd=root)
        await service.traced()
        await service.epoch(udp(), udp())
        await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == 0

    serve(scene)
    found = capture.load([out])
    assert found.whole and sum(isinstance(event, Frame) for event in found.events) == 2
    assert isinstance(found.begins[0], notes.Begin)
