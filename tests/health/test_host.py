# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory, processors, clocks and links: what the kernel tells of them, and what it does not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.health.clocks import Clocks
from appliance.health.links import Links
from appliance.health.memory import Memory
from appliance.health.monitor import Monitor
from appliance.health.processors import Processors
from appliance.health.reading import Reading, State
from appliance.health.settings import Health

OK, WARN, FAILED, UNKNOWN = State.OK, State.WARN, State.FAILED, State.UNKNOWN


async def read(monitor: Monitor) -> dict[str, Reading]:
    return {one.subject: one for one in await monitor.read()}


def once(monitor: Monitor) -> dict[str, Reading]:
    return asyncio.run(read(monitor))


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What /proc and /sys are on a host whose kernel tells everything."""
    write(tmp_path / "proc/meminfo", "MemTotal:  4000000 kB\nMemAvailable:  2048000 kB")
    write(tmp_path / "proc/pressure/memory", "some avg10=50.00 avg60=0 total=1\nfull avg10=1.50 avg60=0 total=1")
    write(tmp_path / "proc/loadavg", "0.10 0.20 0.30 1/100 12345")
    write(tmp_path / "proc/stat", "cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 100 0 100 800 0 0 0 0 0 0")
    for controller in ("mc0", "mc1"):
        for name in ("ce_count", "ue_count"):
            write(tmp_path / "sys/devices/system/edac/mc" / controller / name, 0)
    write(tmp_path / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", 5)
    return tmp_path


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    """Each source that is missing is named with the reason."""
    for monitor in (Memory(Health(), proc=tmp_path, sys=tmp_path), Processors(Health(), proc=tmp_path, sys=tmp_path)):
        found = once(monitor)
        assert found and all(one.state is UNKNOWN and one.reason and one.source for one in found.values())


def test_this_kernel() -> None:
    """Whatever it tells: everything is there, and what is measured has a value."""
    found = {**once(Memory(Health())), **once(Processors(Health()))}
    assert set(found) == {"available", "pressure", "errors corrected", "errors uncorrected", "load", "steal",
                          "throttling"}
    assert found["available"].value and found["load"].value is not None
    assert all(one.value is not None or one.reason for one in found.values())


def test_memory(tree: Path) -> None:
    async def scene() -> None:
        memory = Memory(Health(rounds=2, settle=0.0), proc=tree / "proc", sys=tree / "sys")
        found = await read(memory)
        assert (found["available"].value, found["available"].state) == (2000, OK)
        assert (found["pressure"].value, found["pressure"].state) == (0.015, OK)
        write(tree / "proc/meminfo", "MemAvailable:  30000 kB")
        write(tree / "proc/pressure/memory", "some avg10=90.00\nfull avg10=45.00 avg60=0 total=1")
        assert [(await read(memory))["available"].state for _ in range(2)] == [WARN, FAILED]
        assert (await read(memory))["pressure"].state is WARN, "pressure alone makes no host unfit"
        write(tree / "proc/meminfo", "MemAvailable:  lots kB")
        write(tree / "proc/pressure/memory", "full avg10=lots")
        found = await read(memory)
        assert found["available"].state is found["pressure"].state is UNKNOWN

    asyncio.run(scene())


def test_errors_of_memory(tree: Path) -> None:
    async def scene() -> None:
        memory = Memory(Health(rounds=3, settle=0.0), proc=tree / "proc", sys=tree / "sys")
        counters = tree / "sys/devices/system/edac/mc/mc1"
        assert (await read(memory))["errors corrected"].state is OK
        write(counters / "ce_count", 7)
        for _ in range(2):
            seen = (await read(memory))["errors corrected"]
            assert (seen.state, seen.value, seen.unit) == (WARN, 7, "in 10 min")
        write(counters / "ue_count", 1)
        for _ in range(2):
            seen = (await read(memory))["errors uncorrected"]
            assert (seen.state, seen.value) == (FAILED, 1), "what was spoilt once is not to be trusted"

    asyncio.run(scene())


def test_processors(tree: Path) -> None:
    async def scene() -> None:
        cpu = Processors(Health(), proc=tree / "proc", sys=tree / "sys")
        found = await read(cpu)
        assert {one.state for one in found.values()} == {OK} and found["steal"].value == 0
        write(tree / "proc/loadavg", "10000.0 0 0 1/1 1")
        write(tree / "proc/stat", "cpu  150 0 100 800 0 0 0 50 0 0")
        write(tree / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count", 6)
        for _ in range(5):
            found = await read(cpu)
            assert found["load"].state is found["throttling"].state is WARN, "and never more than that"
        assert found["steal"].value == 0
        write(tree / "proc/stat", "cpu  200 0 100 800 0 0 0 150 0 0")
        found = await read(cpu)
        assert (found["steal"].value, found["steal"].state) == (round(100 / 150, 3), WARN)

    asyncio.run(scene())


class Time:
    """Three clocks that a test sets."""

    def __init__(self) -> None:
        self.monotonic, self.slept, self.offset = 100.0, 0.0, 1e9

    def pass_(self, seconds: float) -> None:
        self.monotonic += seconds

    def clocks(self, health: Health) -> Clocks:
        return Clocks(health, real=lambda: self.monotonic + self.slept + self.offset,
                      monotonic=lambda: self.monotonic, boot=lambda: self.monotonic + self.slept)


@pytest.fixture
def hands() -> Iterator[Time]:
    yield Time()


def test_a_step_of_the_wall_clock(hands: Time) -> None:
    async def scene() -> None:
        clocks = hands.clocks(Health())
        assert {one.state for one in (await read(clocks)).values()} == {OK}
        hands.pass_(1.0)
        hands.offset += 0.1  # slewed or set by a little
        assert (await read(clocks))["wall clock"].state is OK
        hands.pass_(1.0)
        hands.offset -= 2.0
        seen = (await read(clocks))["wall clock"]
        assert (seen.state, seen.value) == (WARN, 2.0)
        hands.pass_(60.0)
        assert (await read(clocks))["wall clock"].state is WARN, "still told to who looks a minute later"
        hands.pass_(600.0)
        assert (await read(clocks))["wall clock"].state is OK
        clocks.close()

    asyncio.run(scene())


def test_a_machine_that_slept(hands: Time) -> None:
    async def scene() -> None:
        clocks = hands.clocks(Health())
        await read(clocks)
        hands.slept += 30.0
        found = await read(clocks)
        assert (found["sleep"].state, found["sleep"].value, found["wall clock"].state) == (WARN, 30.0, OK)
        clocks.close()

    asyncio.run(scene())


def test_a_service_that_wakes_up_late(hands: Time) -> None:
    async def scene() -> None:
        clocks = hands.clocks(Health())
        await read(clocks)
        hands.pass_(1.25)
        clocks._look()
        seen = (await read(clocks))["wake-up"]
        assert (seen.state, seen.value) == (WARN, 1.0)
        hands.pass_(61.0)
        assert (await read(clocks))["wake-up"].state is OK
        clocks.close()

    asyncio.run(scene())


class Cable:
    """What is asked of a link."""

    def __init__(self) -> None:
        self.name, self.carrier, self.up, self.reason = "link0", True, True, ""
        self.rtt: float | None = 0.001
        self.again, self.sent = 0, 0

    def tcp_info(self) -> bytes:
        info = bytearray(192)
        struct.pack_into("=I", info, 100, self.again)
        struct.pack_into("=I", info, 136, self.sent)
        return bytes(info) if self.up else b""


def test_links() -> None:
    async def scene() -> None:
        cable = Cable()
        links = Links([cable], Health())
        assert {one.state for one in (await read(links)).values()} == {OK}
        cable.rtt, cable.again, cable.sent = 0.2, 30, 1000
        found = await read(links)
        assert (found["link0 round trip"].state, found["link0 round trip"].value) == (WARN, 0.2)
        assert (found["link0 jitter"].state, found["link0 jitter"].value) == (WARN, 0.199)
        assert (found["link0 loss"].state, found["link0 loss"].value) == (WARN, 0.03)
        cable.again, cable.sent = 31, 1010
        assert (await read(links))["link0 loss"].state is OK, "of a handful nothing can be said"
        cable.up, cable.rtt, cable.reason = False, None, "silent for 400 ms"
        found = await read(links)
        assert (found["link0 session"].state, found["link0 session"].reason) == (FAILED, "silent for 400 ms")
        assert found["link0 round trip"].state is found["link0 loss"].state is UNKNOWN
        cable.carrier = False
        assert (await read(links))["link0 carrier"].state is FAILED
        cable.up, cable.carrier, cable.rtt = True, True, 0.001
        assert (await read(links))["link0 session"].state is OK

    asyncio.run(scene())
