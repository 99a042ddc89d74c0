# SPDX-License-Identifier: GPL-2.0-or-later
"""A host with rules loaded: a bridge, a client on its uplink, and the bare out tap of a front without a guard."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from appliance.tap import open_tap
from rules.policy import Link, Policy, Station
from rules.tables import Tables
from tests.net.stage import GUEST_MAC, Stage, run, tap_write
from tests.rules.frames import OWN4, OWN6

DEVICE = "ho-web1"
LINK = Link("c9", "169.254.9.1", "169.254.9.2", 7780)


def station(*ips: str) -> Station:
    return Station("web1", DEVICE, GUEST_MAC, ips)


class Scene:
    """A stage whose host has rules for one front with addresses, open, and one `Tables`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        stage.quiet()
        self.tap = open_tap(DEVICE)
        run("ip", "link", "set", DEVICE, "master", "br0", "up")
        self.client = stage.sniff()
        self.tables = Tables(Policy((LINK,), (station(OWN4, OWN6),)))

    def passes(self, frame: bytes) -> bool:
        """Does the frame reach the client? What is sent behind it, and always passes, says when to stop."""
        end = bytes.fromhex("ffffffffffff" + GUEST_MAC.replace(":", "") + "88b6") + os.urandom(46)
        tap_write(self.tap, frame)
        nft("add element bridge holdfast open { ho-web1 }; insert rule bridge holdfast check ether type 0x88b6 accept")
        tap_write(self.tap, end)
        seen: list[bytes] = []
        while end not in seen:
            more = self.client.wait(1, None)
            assert more, "not even the frame behind it came"
            seen += more
        return any(one[:len(frame)] == frame for one in seen)

    def dropped(self, why: str) -> int:
        for one in self.tables._list():  # the rules are not as loaded any more, with what `passes` adds
            if one.get("set", {}).get("name") == f"dropped_{why}":
                counts: list[int] = [elem["elem"]["counter"]["packets"] for elem in one["set"]["elem"]]
                return sum(counts)
        raise AssertionError(f"no set dropped_{why}")

    def close(self) -> None:
        self.tables.close()
        os.close(self.tap)


def nft(text: str) -> str:
    return run("nft", text)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    made = Stage()
    try:
        made.build()
        yield made
        left = made.devices() & {DEVICE, "hh-web1", "hv-web1"}
        assert not left, f"left behind: {left}"
    finally:
        made.tear_down()


@pytest.fixture(scope="module")
def scene(stage: Stage) -> Iterator[Scene]:
    made = Scene(stage)
    try:
        yield made
    finally:
        made.close()
