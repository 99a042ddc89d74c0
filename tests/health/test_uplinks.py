# SPDX-License-Identifier: GPL-2.0-or-later
"""Uplinks in real namespaces: a lost carrier is seen at once, and neighbours answer or do not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import AsyncIterator

import pytest

from appliance.health import rtnl
from appliance.health.reach import Reach
from appliance.health.reading import Reading, State
from appliance.health.settings import Health
from appliance.health.uplink import Uplinks
from appliance.tap import open_tap
from tests.net.stage import PLAIN, Stage, frame, run

PROMISED = 0.1
"""Seconds within which a lost carrier must be known."""
SLACK = 0.4
"""Seconds that a busy machine may take on top."""
QUICK = Health(interval=0.2, settle=0.3)
OK, WARN, FAILED, UNKNOWN = State.OK, State.WARN, State.FAILED, State.UNKNOWN


class Watched:
    """Uplinks that are read when they ask for it, as the service does it."""

    def __init__(self, health: Health = QUICK, bridges: tuple[str, ...] = ("br0",)) -> None:
        self.woken = asyncio.Event()
        self.uplinks = Uplinks(list(bridges), health, self.woken.set)

    async def of(self, subject: str) -> Reading:
        return next(one for one in await self.uplinks.read() if one.subject == subject)

    async def wait(self, subject: str, state: State, seconds: float = 5.0) -> float:
        """Read whenever woken until the subject is in `state`; returns the seconds it took."""
        begun = time.monotonic()
        async with asyncio.timeout(seconds):
            while True:
                await self.woken.wait()
                self.woken.clear()
                if (await self.of(subject)).state is state:
                    return time.monotonic() - begun


@contextlib.asynccontextmanager
async def watched(health: Health = QUICK, *bridges: str) -> AsyncIterator[Watched]:
    made = Watched(health, bridges or ("br0",))
    try:
        yield made
    finally:
        made.uplinks.close()


def test_a_lost_carrier_is_known_within_the_promised_time(stage: Stage) -> None:
    async def scene(far: bool, health: Health) -> None:
        async with watched(health) as host:
            first = await host.of("br0 carrier")
            assert (first.state, first.value, first.reason) == (OK, 1, "")
            for _ in range(3):  # the kernel batches the events of carriers that follow each other
                begun = time.monotonic()
                switch(far, "down")
                await host.wait("br0 carrier", FAILED)
                assert time.monotonic() - begun < PROMISED + SLACK
                assert (await host.of("br0 carrier")).reason == "up0: no carrier"
                switch(far, "up")
                await host.wait("br0 carrier", WARN)

    def switch(far: bool, state: str) -> None:
        with stage.inside("client" if far else "host"):
            run("ip", "link", "set", "c0" if far else "up0", state)

    for far in (False, True):
        asyncio.run(scene(far, QUICK))
    asyncio.run(scene(True, Health(settle=60.0, interval=60.0)))  # not by the slow look at all devices


@pytest.mark.parametrize("by", ["the event", "the look"])
def test_each_way_to_see_it_is_enough(stage: Stage, by: str) -> None:
    async def scene() -> None:
        health = Health(interval=60.0, carrier_interval=60.0 if by == "the event" else QUICK.carrier_interval)
        async with watched(health) as host:
            await host.of("br0 carrier")
            if by == "the look":
                asyncio.get_running_loop().remove_reader(host.uplinks._watch._events)
            with stage.inside("client"):
                run("ip", "link", "set", "c0", "down")
            assert await host.wait("br0 carrier", FAILED) < 2.0

    asyncio.run(scene())


def test_a_carrier_that_is_back_is_trusted_after_a_while(stage: Stage) -> None:
    async def scene() -> None:
        async with watched() as host:
            await host.of("br0 carrier")
            run("ip", "link", "set", "up0", "down")
            assert (await host.of("br0 carrier")).state is FAILED
            run("ip", "link", "set", "up0", "up")
            seen = await host.of("br0 carrier")
            assert (seen.state, seen.doubtful) == (WARN, True) and "only just" in seen.reason
            begun = time.monotonic()
            while (seen := await host.of("br0 carrier")).state is not OK:
                assert time.monotonic() - begun < 5
                await asyncio.sleep(0.02)
            assert time.monotonic() - begun > QUICK.settle / 2 and not seen.doubtful

    asyncio.run(scene())


def test_one_of_two_uplinks_is_enough(stage: Stage) -> None:
    run("ip", "link", "add", "up1", "type", "veth", "peer", "c1", "netns", stage.name("client"))
    run("ip", "link", "set", "up1", "master", "br0", "up")
    with stage.inside("client"):
        run("ip", "link", "set", "c1", "up")

    async def scene() -> None:
        async with watched() as host:
            assert (await host.of("br0 carrier")).value == 2
            run("ip", "link", "set", "up0", "down")
            seen = await host.of("br0 carrier")
            assert (seen.state, seen.value, seen.reason) == (WARN, 1, "up0: no carrier")
            assert not seen.doubtful, "no reason to distrust the other"
            run("ip", "link", "del", "up1")  # as a NIC that fell off its bus
            seen = await host.of("br0 carrier")
            assert (seen.state, seen.reason) == (FAILED, "up0: no carrier; up1: no carrier")
            seen = await host.of("br0 carrier")
            assert (seen.state, seen.reason) == (FAILED, "up0: no carrier; up1: no port of it")

    asyncio.run(scene())


def test_an_uplink_that_was_taken_out_of_its_bridge(stage: Stage) -> None:
    async def scene() -> None:
        async with watched(Health(settle=0.0)) as host:
            assert (await host.of("br0 carrier")).state is OK
            run("ip", "link", "set", "up0", "nomaster")
            seen = await host.of("br0 carrier")
            assert (seen.state, seen.value, seen.reason) == (FAILED, 0, "up0: no port of it")
            run("ip", "link", "set", "up0", "master", "br0")
            assert (await host.of("br0 carrier")).state is OK

    asyncio.run(scene())


def test_what_is_no_uplink(stage: Stage) -> None:
    """A VM's tap has a carrier whatever the cable does; a bridge without any way out is not judged."""
    tap = open_tap("hltap0")
    try:
        run("ip", "link", "set", "hltap0", "master", "br0", "up")
        run("ip", "link", "add", "hlvx0", "type", "vxlan", "id", "7", "local", "127.0.0.1", "remote", "127.0.0.2",
            "dstport", "4789", "dev", "lo")
        run("ip", "link", "set", "hlvx0", "master", "br0", "up")
        run("ip", "link", "add", "br9", "type", "bridge")
        run("ip", "link", "set", "br9", "up")

        async def scene() -> None:
            async with watched(QUICK, "br0", "br9", "br8") as host:
                assert (await host.of("br0 carrier")).value == 1
                seen = await host.of("br9 carrier")
                assert (seen.state, seen.reason) == (UNKNOWN, "no uplink is a port of the bridge")
                assert (await host.of("br8 carrier")).state is FAILED
                run("ip", "link", "set", "up0", "down")
                assert (await host.of("br0 carrier")).state is FAILED
            async with watched(Health(uplink=("hltap0",))) as host:
                assert (await host.of("br0 carrier")).state is OK, "the configuration knows better"

        asyncio.run(scene())
    finally:
        os.close(tap)


def test_devices_as_the_kernel_counts_them(stage: Stage) -> None:
    """Compared with what ip(8) reads; a tap that nobody empties drops."""
    tap = open_tap("hltap0")
    try:
        run("ip", "link", "set", "hltap0", "master", "br0", "up")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
            sender.bind(("hltap0", PLAIN))
            for _ in range(3000):
                with contextlib.suppress(OSError):
                    sender.send(frame(b""))
        found = {device.name: device for device in rtnl.devices()}
        assert found["hltap0"].drops > 0
        assert {name: (device.kind, (found["br0"].index if name != "br0" else 0) == device.master, device.up)
                for name, device in found.items() if name != "lo"} == {
            "br0": ("bridge", True, True), "up0": ("veth", True, True), "hltap0": ("tun", True, True)}
        for told in json.loads(run("ip", "-j", "-s", "link")):
            device, (rx, tx) = found[told["ifname"]], (told["stats64"]["rx"], told["stats64"]["tx"])
            assert device.mac.hex(":") == told["address"] and device.index == told["ifindex"]
            assert (device.errors, device.drops) == (rx["errors"] + tx["errors"], rx["dropped"] + tx["dropped"])
    finally:
        os.close(tap)


def test_a_rate_of_drops_is_told(stage: Stage) -> None:
    tap = open_tap("hltap0")
    try:
        run("ip", "link", "set", "hltap0", "master", "br0", "up")

        async def scene() -> None:
            async with watched(Health(interval=0.2, uplink=("hltap0",), drops_warn=10.0)) as host:
                assert (await host.of("hltap0 drops")).value == 0
                with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
                    sender.bind(("hltap0", PLAIN))
                    for _ in range(3000):
                        with contextlib.suppress(OSError):
                            sender.send(frame(b""))
                seen = await host.of("hltap0 drops")
                assert seen.state is WARN and seen.value is not None and seen.value > 10 and seen.unit == "/s"
                assert (await host.of("hltap0 errors")).state is OK

        asyncio.run(scene())
    finally:
        os.close(tap)


def test_neighbours_answer_or_do_not(stage: Stage) -> None:
    async def scene() -> None:
        reach = Reach(["br0"], Health(probe=("10.77.9.1", "10.77.9.77"), interval=0.2, rounds=2, settle=0.0))
        seen, = await reach.read()
        assert (seen.state, seen.value, seen.reason) == (WARN, 1, "no answer from 10.77.9.77")
        assert not seen.doubtful
        with stage.inside("client"):
            run("ip", "addr", "flush", "dev", "c0")
        seen, = await reach.read()
        assert (seen.state, seen.value, seen.doubtful) == (WARN, 0, True), "not believed at once"
        seen, = await reach.read()
        assert (seen.state, seen.reason) == (FAILED, "no answer from 10.77.9.1, 10.77.9.77")
        with stage.inside("client"):
            run("ip", "addr", "add", "10.77.9.1/24", "dev", "c0")
        seen, = await reach.read()
        assert (seen.state, seen.value) == (WARN, 1)
        run("ip", "link", "set", "br0", "down")
        seen, = await reach.read()
        assert seen.reason == "cannot probe through br0: Network is down"

    asyncio.run(scene())


def test_an_answer_that_nobody_had_time_to_read_counts(stage: Stage) -> None:
    """A service that stood still must not blame its neighbours."""
    async def scene() -> None:
        reach = Reach(["br0"], Health(probe=("10.77.9.1",), interval=0.2, rounds=1))
        assert (await reach.read())[0].state is OK
        sniffer = stage.sniff()
        reading = asyncio.ensure_future(reach.read())
        for _ in range(100000):
            await asyncio.sleep(0)
            if sniffer.take(0x0806):
                break  # the probe is out, and the answer here, before anything else has run
        asyncio.get_running_loop().remove_reader(reach._ears["br0"].socket)
        assert (await reading)[0].state is OK
        reach.close()

    asyncio.run(scene())


def test_probes_have_a_fixed_source_and_fill_no_cache(stage: Stage) -> None:
    sniffer = stage.sniff()

    async def probe() -> None:
        await Reach(["br0"], Health(probe=("10.77.9.1",), interval=0.2)).read()

    def request() -> bytes:
        return next(one for one in sniffer.wait(1, 0x0806) if one[20:22] == b"\0\1")

    bridge = next(device for device in rtnl.devices() if device.name == "br0")
    asyncio.run(probe())
    sent = request()
    assert (sent[6:12], sent[22:28], sent[28:32]) == (bridge.mac, bridge.mac, bytes(4))
    with stage.inside("client"):
        assert "10.77.9" not in run("ip", "neigh")
    run("ip", "addr", "add", "10.77.9.2/24", "dev", "br0")
    asyncio.run(probe())
    assert request()[28:32] == bytes([10, 77, 9, 2])


def test_without_neighbours_nothing_is_known() -> None:
    async def scene() -> None:
        seen, = await Reach(["br0"], Health()).read()
        assert seen.state is UNKNOWN and "health.probe" in seen.reason

    asyncio.run(scene())
