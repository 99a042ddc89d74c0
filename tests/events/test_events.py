# SPDX-License-Identifier: GPL-2.0-or-later
"""The stream of events: whole and in order for who reads, bounded for who does not."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from appliance.core import Phase
from appliance.events import END_OF_STATE, LOST, WAITING, Events


def dump() -> list[dict[str, Any]]:
    return [{"what": "host", "host": "alpha"}, {"what": "vm", "vm": "web1", "phase": "solo"},
            {"what": "vm", "vm": "db1", "phase": "standby"}]


async def some(stream: AsyncGenerator[dict[str, Any], None], count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(10):
        return [await anext(stream) for _ in range(count)]


def test_what_is_so_then_a_marker_then_what_happens() -> None:
    async def live() -> None:
        events = Events()
        events.tell("before", "web1")
        stream = events.stream(dump)
        state = await some(stream, 4)
        assert [one["event"] for one in state] == ["state"] * 3 + [END_OF_STATE]
        assert state[1]["phase"] == "solo" and state[3]["seq"] == 1
        events.tell("protected", "web1", was="syncing", term=0)
        events.tell("link-down", link="link0", reason="")
        first, second = await some(stream, 2)
        assert (first["seq"], first["event"], first["vm"], first["term"]) == (2, "protected", "web1", 0)
        assert second["seq"] == 3 and "vm" not in second and second["reason"] == "", "zeros and nothings are told"
        await stream.aclose()
        assert not events._subscriptions

    asyncio.run(live())


def test_nothing_is_lost_between_the_state_and_the_first_change() -> None:
    async def live() -> None:
        events = Events()
        stream = events.stream(dump)
        await anext(stream)  # whoever reads slowly
        events.tell("solo", "web1")
        assert [one["event"] for one in await some(stream, 4)] == ["state", "state", END_OF_STATE, "solo"]

    asyncio.run(live())


def test_only_the_state() -> None:
    async def live() -> list[str]:
        return [one["event"] async for one in Events().stream(dump, live=False)]

    assert asyncio.run(live()) == ["state"] * 3 + [END_OF_STATE]


def test_other_vms_are_left_out() -> None:
    async def live() -> None:
        events = Events()
        stream = events.stream(dump, vm="web1")
        assert [one.get("vm") for one in await some(stream, 3)] == [None, "web1", None]
        events.tell("solo", "db1")
        events.tell("solo", "web1")
        events.tell("link-up", link="link0")
        assert [one.get("vm") for one in await some(stream, 2)] == ["web1", None]

    asyncio.run(live())


def test_a_slow_reader_costs_bounded_memory_and_is_told_what_it_lost() -> None:
    async def live() -> None:
        events = Events()
        stream, quick = events.stream(dump), events.subscribe()
        await some(stream, 4)
        for number in range(WAITING + 500):
            events.tell("tick", number=number)
            assert (await quick.next())["number"] == number, "one that reads loses nothing"
        (slow,) = [one for one in events._subscriptions if one is not quick]
        assert len(slow._waiting) == WAITING
        got = await some(stream, WAITING)
        assert [one["number"] for one in got] == list(range(WAITING))
        events.tell("tick", number=-1)  # lost too: it comes after what is lost
        lost, *state = await some(stream, 5)
        assert (lost["event"], lost["count"]) == (LOST, 501)
        assert [one["event"] for one in state] == ["state"] * 3 + [END_OF_STATE], "what is so, once more"
        assert events.lost == 501
        events.tell("tick", number=7)
        assert (await anext(stream))["number"] == 7

    asyncio.run(live())


def test_who_listens_hears_at_once_and_cannot_break_who_tells(caplog: pytest.LogCaptureFixture) -> None:
    events, heard = Events(), []

    def broken(event: dict[str, Any], now: float) -> None:
        raise ZeroDivisionError

    events.listen(broken)
    events.listen(lambda event, now: heard.append(event["event"]))
    assert events.tell("solo", "web1")["seq"] == 1
    assert heard == ["solo"] and "a listener failed at the event solo" in caplog.text


def test_every_event_that_is_told_is_documented() -> None:
    root = Path(__file__).resolve().parents[2]
    told = (root / "docs" / "events.md").read_text()
    code = "\n".join(file.read_text() for file in (root / "appliance").rglob("*.py") if file.parts[-2] != "lab")
    names = set(re.findall(r'(?:journal\.event|events\.tell)\(\s*"([a-z-]+)"', code)) | set(map(str, Phase))
    assert len(names) > 25
    assert {name for name in names if f"`{name}`" not in told} == set()
