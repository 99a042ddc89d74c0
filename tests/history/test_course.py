# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host writes into its history while a simulated pair goes through its life."""

from __future__ import annotations

from typing import Any

import pytest

from appliance import core
from appliance.core import SPEAKING, Phase
from appliance.history.course import Course, cause
from appliance.history.entry import STEPS, Entry, Kind, Result, steps_ms
from tests.core import walk
from tests.core.simulation import Host, Pair

EPOCH = 1_700_000_000.0


class Written(Pair):
    """A pair whose hosts write history, as protection.py tells it."""

    def __init__(self, arbiter: bool = True) -> None:
        self.courses = {name: Course("web1", name) for name in ("alpha", "beta")}
        self.books: dict[str, dict[str, Entry]] = {name: {} for name in self.courses}
        super().__init__(arbiter)

    def boot(self, host: Host) -> None:
        self.courses[host.name] = Course("web1", host.name)  # a new service
        super().boot(host)

    def crash(self, host: Host) -> None:
        course = self.courses[host.name]
        super().crash(host)
        self.courses[host.name] = Course("web1", host.name)
        assert course.open is None or course.open.id in self.books[host.name], "what was under way was kept"

    def feed(self, host: Host, event: core.Event) -> None:
        before = host.state
        if before is not None and not host.asleep:
            self.hears(host, event)
        super().feed(host, event)

    def decide(self, host: Host, event: core.Event) -> list[core.Effect]:
        assert host.state is not None
        was, effects = host.state.phase, super().decide(host, event)
        state = host.state
        if state.phase is not was:
            self.tell(host, str(state.phase), was=was, term=state.term, reason=state.reason,
                      cause=cause(state, effects), planned=state.needs_word)
            entry = self.courses[host.name].open
            if state.phase in SPEAKING and was not in SPEAKING and was is not Phase.HANDOVER:
                assert entry is not None, f"{host.name} speaks and nothing says why"
                assert entry.speaks_at == pytest.approx(EPOCH + self.now)
        return effects

    def hears(self, host: Host, event: core.Event) -> None:
        match event:
            case core.PeerDown():
                self.tell(host, "peer-down", silent_ms=300.0)
            case core.Granted(term):
                self.tell(host, "granted", term=term, reason="yes")
            case core.Refused(reason):
                self.tell(host, "refused", reason=reason)

    def tell(self, host: Host, name: str, **fields: Any) -> None:
        self.now += 1e-6  # nothing happens twice at one moment
        event = {"event": name, "vm": "web1", "at": EPOCH + self.now, **fields}
        for entry in self.courses[host.name].hear(event, self.now):
            self.books[host.name][entry.id] = entry

    def book(self, name: str) -> list[Entry]:
        return list(self.books[name].values())

    def sound(self) -> None:
        for name, book in self.books.items():
            for entry in book.values():
                assert (entry.vm, entry.host) == ("web1", name)
                assert (entry.ended_at is None) == (entry.result is Result.OPEN), entry
                assert all(step is None or step >= 0 for step in steps_ms(entry).values()), (entry, steps_ms(entry))
                assert entry.ended_at is None or entry.ended_at >= entry.detected_at


@pytest.fixture
def pair() -> Written:
    pair = Written()
    pair.relink()
    pair.settle()
    return pair


def kinds(pair: Written, name: str) -> list[tuple[Kind, Result]]:
    return [(entry.kind, entry.result) for entry in pair.book(name)]


def test_the_start(pair: Written) -> None:
    assert kinds(pair, "alpha") == [(Kind.START, Result.PROTECTED)]
    assert kinds(pair, "beta") == [(Kind.JOINED, Result.STANDBY)]
    pair.sound()


def test_a_crash_and_the_return(pair: Written) -> None:
    pair.crash(pair.hosts["alpha"])
    pair.settle()
    found = pair.book("beta")[-1]
    assert (found.kind, found.result, found.term) == (Kind.TAKEOVER, Result.OPEN, 2)
    assert found.cause == "cut" and found.grant == "yes"
    assert found.heard_at is not None and found.detected_at - found.heard_at == pytest.approx(0.3, abs=1e-4)
    assert None not in (found.granted_at, found.recorded_at, found.speaks_at)
    assert found.granted_at <= found.recorded_at <= found.speaks_at  # type: ignore[operator]
    pair.boot(pair.hosts["alpha"])
    pair.relink()
    pair.settle()
    assert pair.book("beta")[-1].result is Result.PROTECTED
    assert kinds(pair, "alpha")[-1] == (Kind.JOINED, Result.STANDBY)
    pair.sound()


def test_a_dead_qemu(pair: Written) -> None:
    pair.kill_vm(pair.hosts["alpha"])
    pair.settle()
    assert kinds(pair, "alpha")[-1] == (Kind.LOST, Result.STANDBY)
    assert kinds(pair, "beta")[-1] == (Kind.TAKEOVER, Result.PROTECTED)
    assert pair.book("beta")[-1].granted_at is None, "the peer's own word needs no grant"
    pair.sound()


def test_a_lost_backup(pair: Written) -> None:
    pair.crash(pair.hosts["beta"])
    pair.settle()
    assert kinds(pair, "alpha")[-1] == (Kind.ALONE, Result.OPEN)
    assert pair.book("alpha")[-1].speaks_at is not None
    pair.sound()


def test_a_replica_that_dies(pair: Written) -> None:
    pair.kill_vm(pair.hosts["beta"])
    pair.settle()
    assert kinds(pair, "alpha")[-1] == (Kind.ALONE, Result.PROTECTED)
    assert "lost its replica" in pair.book("alpha")[-1].cause
    assert kinds(pair, "beta")[-1] == (Kind.JOINED, Result.STANDBY)
    pair.sound()


def test_a_switchover_is_written_on_both_sides(pair: Written) -> None:
    pair.first_epoch(pair.hosts["alpha"])
    pair.feed(pair.hosts["alpha"], core.SwitchOver("ordered"))
    pair.settle()
    assert kinds(pair, "alpha")[-1] == (Kind.GIVEN, Result.STANDBY)
    assert kinds(pair, "beta")[-1] == (Kind.SWITCHOVER, Result.PROTECTED)
    given, taken = pair.book("alpha")[-1], pair.book("beta")[-1]
    assert (given.cause, given.term, taken.term) == ("ordered", 2, 2)
    pair.sound()


def test_a_partition_that_the_other_host_wins(pair: Written) -> None:
    pair.unlink()
    beta = pair.hosts["beta"]
    pair.tick(0.02)
    pair.work(beta)  # it asks first
    for _ in range(4):
        pair.work(beta)
    pair.tick()
    pair.settle(3)
    pair.relink()
    pair.settle()
    assert kinds(pair, "beta")[-1] == (Kind.TAKEOVER, Result.PROTECTED)
    assert kinds(pair, "alpha")[-1] == (Kind.LOST, Result.STANDBY)
    pair.sound()


def test_a_fence(pair: Written) -> None:
    pair.feed(pair.hosts["beta"], core.Fence("fenced by the operator"))
    pair.settle(20)
    assert kinds(pair, "beta")[-1] == (Kind.FENCED, Result.FENCED)
    assert kinds(pair, "alpha")[-1][0] is Kind.ALONE
    pair.sound()


def test_a_service_that_ends_ends_what_is_open(pair: Written) -> None:
    pair.crash(pair.hosts["beta"])
    pair.settle()
    left = pair.courses["alpha"].end(Result.STOPPED, pair.now)
    assert [(entry.kind, entry.result) for entry in left] == [(Kind.ALONE, Result.STOPPED)]
    assert pair.courses["alpha"].open is None and pair.courses["alpha"].end(Result.STOPPED, pair.now) == []


def test_whatever_happens_the_book_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random walks of a pair: each speech has an entry that says why, and nothing stays open in a settled pair."""
    pairs: list[Written] = []

    def begun() -> Written:
        pairs.append(Written())
        return pairs[-1]

    monkeypatch.setattr(walk, "Pair", begun)
    seen: set[Kind] = set()
    for seed in range(150):
        walk.walk(seed)
        pair = pairs.pop()
        pair.sound()
        assert all(course.open is None for course in pair.courses.values()), seed
        seen |= {entry.kind for book in pair.books.values() for entry in book.values()}
    assert seen == set(Kind) - {Kind.FENCED}


def test_the_rest_of_what_is_told() -> None:
    """What only a real host tells: loading, replay, the first frame, the handover."""
    course = Course("web1", "beta")

    def hear(name: str, now: float, **fields: Any) -> list[Entry]:
        return course.hear({"event": name, "vm": "web1", "at": EPOCH + now, **fields}, now)

    assert hear("first-frame", 1.0) == []  # nothing is open
    hear("peer-down", 9.9, silent_ms=20.0)
    hear("asking", 9.9, was="standby", term=1, reason="no link left")
    hear("granted", 9.91, term=2, reason="granted")
    hear("taking-over", 9.92, was="asking", term=2, reason="no link left")
    hear("takeover-begin", 9.92, term=2, epoch=77)
    hear("takeover-done", 9.93, term=2)
    hear("replayed", 9.93, frames=3, to_send_again=4)
    hear("fencing", 9.93, was="taking-over", term=2, reason="silent")
    hear("solo", 9.95, was="fencing", term=2, reason="no backup yet")
    (entry,) = hear("first-frame", 9.96, frames=4, cause="again")
    assert hear("first-frame", 11.0) == [], "only the first"
    hear("syncing", 12.0, was="solo", term=2, reason="")
    (entry,) = hear("protected", 13.0, was="syncing", term=2, reason="")
    assert (entry.epoch, entry.replayed_frames, entry.sent_again_frames) == (77, 3, 4)
    took = {name: pytest.approx(ms, abs=0.01) for name, ms in steps_ms(entry).items() if ms is not None}
    assert took == {"silence": 20, "grant": 10, "record": 10, "load": 10, "fence": 20, "first_frame": 10,
                    "until_resync": 2050, "resync": 1000, "dark": 50}
    assert {name for name, _, _ in STEPS} - set(took) == {"hand_over"}
