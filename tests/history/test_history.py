# SPDX-License-Identifier: GPL-2.0-or-later
"""The history as the service has it: on disk soon, over restarts, from both hosts, whatever the disk does."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import HoldfastError, Unavailable, UsageError
from appliance.events import Events
from appliance.history.entry import Kind
from appliance.history.history import MOST, History, told
from appliance.history.ledger import Ledger
from tests.history.test_ledger import entry


class Orders:
    """What the peer answers."""

    def __init__(self, answer: dict[str, Any] | HoldfastError) -> None:
        self.answer = answer
        self.asked: dict[str, Any] = {}

    async def ask(self, verb: str, timeout: float, **args: Any) -> dict[str, Any]:
        self.asked = {"verb": verb, **args}
        if isinstance(self.answer, HoldfastError):
            raise self.answer
        return self.answer


NOBODY = Unavailable("beta is not reachable")


def history(directory: Path, answer: dict[str, Any] | HoldfastError = NOBODY) -> tuple[Events, History]:
    events = Events()
    made = History("alpha", "beta", ["web1", "db1"], directory, events)
    made.orders = Orders(answer)  # type: ignore[assignment]
    return events, made


def backup_lost(events: Events, vm: str = "web1", term: int = 1) -> None:
    events.tell("peer-down", vm, reason="no link left", silent_ms=300.0)
    events.tell("asking", vm, was="protected", term=term, reason="no link left")
    events.tell("granted", vm, term=term + 1, reason="term 2 is granted")
    events.tell("solo", vm, was="asking", term=term + 1, reason="alone")


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a file is looked at
            await asyncio.sleep(0.005)


def test_what_happens_is_on_disk_at_once_and_known_to_the_next_service(tmp_path: Path) -> None:
    async def live() -> dict[str, Any]:
        events, made = history(tmp_path)
        await made.load()
        writer = asyncio.create_task(made.run())
        backup_lost(events)
        await until(lambda: (found := Ledger(tmp_path / "history.jsonl").load()) and found[0].speaks_at is not None)
        writer.cancel()  # and the service is killed
        events, made = history(tmp_path)
        await made.load()
        backup_lost(events, "db1")
        await made.close()
        events, made = history(tmp_path)
        await made.load()
        return await made.verb({})

    reply = asyncio.run(live())
    found = [(one["vm"], one["kind"], one["result"]) for one in reply["entries"]]
    assert found == [("web1", "alone", "interrupted"), ("db1", "alone", "stopped")]
    assert reply["hosts"]["alpha"] == {"reachable": True, "reason": "", "entries": 2, "damaged_lines": 0, "disk": "ok"}
    assert reply["hosts"]["beta"]["reachable"] is False and "not reachable" in reply["hosts"]["beta"]["reason"]
    assert reply["entries"][0]["ms"]["silence"] == pytest.approx(300, abs=50)


def test_failovers_are_counted_and_measured(tmp_path: Path) -> None:
    events, made = history(tmp_path)
    backup_lost(events)
    assert made.counts["web1", Kind.ALONE] == 1 and made.counts["db1", Kind.ALONE] == 0
    measured = made.failovers["web1", Kind.ALONE]
    assert sum(measured.counts) == 1 and 0 < measured.sum < 1
    events.tell("protected", "web1", was="syncing", term=2, reason="")
    assert sum(measured.counts) == 1


def test_both_hosts_are_one_history(tmp_path: Path) -> None:
    theirs = [{**told(entry(10)), "host": "beta"}, {**told(entry(30)), "host": "beta"},
              {**told(entry(40)), "host": "gamma"}]
    answer = {"schema": "holdfast.history/1", "hosts": {"beta": {"reachable": True}}, "entries": theirs}
    Ledger(tmp_path / "history.jsonl").append([entry(20)])

    async def ask(**args: Any) -> dict[str, Any]:
        _, made = history(tmp_path, answer)
        await made.load()
        return await made.verb(args)

    reply = asyncio.run(ask())
    assert [(one["host"], one["detected_at"]) for one in reply["entries"]] == [
        ("beta", 10), ("alpha", 20), ("beta", 30)], "by time; nobody speaks for a third host"
    assert [one["detected_at"] for one in asyncio.run(ask(limit=2))["entries"]] == [20, 30]
    assert [one["host"] for one in asyncio.run(ask(own=True))["entries"]] == ["alpha"]
    assert set(asyncio.run(ask(own=True))["hosts"]) == {"alpha"}


@pytest.mark.parametrize("answer", [
    {}, {"hosts": {}, "entries": []}, {"hosts": {"beta": {}}, "entries": [{"id": 3}]}, {"hosts": 3, "entries": []}])
def test_a_peer_that_makes_no_sense_is_told_as_such(tmp_path: Path, answer: dict[str, Any]) -> None:
    _, made = history(tmp_path, answer)
    reply = asyncio.run(made.verb({}))
    assert reply["hosts"]["beta"]["reachable"] is False
    assert "cannot be understood" in reply["hosts"]["beta"]["reason"] and reply["entries"] == []


@pytest.mark.parametrize("args", [{"limit": 0}, {"limit": MOST + 1}, {"limit": "all"}, {"vm": "nothing"}, {"vm": 7}])
def test_what_cannot_be_asked(tmp_path: Path, args: dict[str, Any]) -> None:
    _, made = history(tmp_path)
    with pytest.raises(UsageError):
        asyncio.run(made.verb(args))


def test_a_disk_that_refuses_is_told_and_what_it_missed_comes_later(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "history.jsonl").mkdir()  # nothing can be written there

    async def live() -> None:
        events, made = history(tmp_path)
        await made.load()
        writer = asyncio.create_task(made.run())
        backup_lost(events)
        await until(lambda: made._trouble)
        reply = await made.verb({"own": True})
        assert reply["hosts"]["alpha"]["disk"] == "Is a directory" and len(reply["entries"]) == 1
        (tmp_path / "history.jsonl").rmdir()
        backup_lost(events, "db1")
        await until(lambda: len(Ledger(tmp_path / "history.jsonl").load()) == 2)
        assert (await made.verb({"own": True}))["hosts"]["alpha"]["disk"] == "ok"
        writer.cancel()

    asyncio.run(live())
    assert len([line for line in caplog.messages if "not on disk" in line]) == 1, "told once"


def test_a_disk_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hung, entered = threading.Event(), threading.Event()

    def hang(self: Ledger, entries: Any) -> None:
        entered.set()
        hung.wait(30)

    monkeypatch.setattr(Ledger, "append", hang)
    monkeypatch.setattr("appliance.history.history.FAREWELL", 0.1)

    async def live() -> None:
        events, made = history(tmp_path)
        writer = asyncio.create_task(made.run())
        backup_lost(events)
        await until(entered.is_set)
        for term in range(3, 3000, 2):
            backup_lost(events, term=term)
        assert len((await made.verb({"own": True, "limit": MOST}))["entries"]) == MOST
        assert len(made._unwritten) <= 1000
        writer.cancel()
        await made.close()
        hung.set()

    asyncio.run(live())
