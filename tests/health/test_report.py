# SPDX-License-Identifier: GPL-2.0-or-later
"""The health of a pair: gathered by real monitors, asked of the other host, remembered when it is gone, and shown."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import cli
from appliance import config as cfg
from appliance.cli import health
from appliance.cli.screen import Screen
from appliance.control import client
from appliance.errors import HoldfastError, Unavailable
from appliance.exits import Exit
from appliance.health.fitness import Fitness
from appliance.health.health import Health
from appliance.health.monitor import Monitor
from appliance.health.reading import Reading, State
from appliance.health.report import Report
from tests.net.stage import Stage, run

COMPONENTS = ["uplink", "disk", "memory", "cpu", "clock"]


def configuration(directory: Path) -> cfg.Config:
    kernel = directory / "vmlinuz"
    kernel.write_bytes(b"kernel")
    vm = cfg.Vm(home="alpha", memory=1 << 27, mac="52:54:00:00:00:01", bridge="br0", kernel=kernel)
    return cfg.Config(host=cfg.Host(name="alpha", state_dir=directory, run_dir=directory), peer=cfg.Peer(name="beta"),
                      link=(), vm={"web1": vm}, health=cfg.Health(interval=0.1, settle=0.2, disk_interval=0.1))


async def holds(what: str, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        await asyncio.sleep(0.005)


def test_all_monitors_together(stage: Stage, tmp_path: Path) -> None:
    """Every component tells something, and a change of fitness is told once for each change."""
    async def scene() -> None:
        told: list[Fitness] = []
        health = Health(configuration(tmp_path), [], list, lambda: told.append(health.fitness()))
        assert health.fitness() == Fitness() and not health.readings()
        running = asyncio.ensure_future(health.run())
        await holds("all have read", lambda: {one.component for one in health.readings()} == set(COMPONENTS))
        assert list(dict.fromkeys(one.component for one in health.readings())) == COMPONENTS, "always in this order"
        assert not told
        run("ip", "link", "set", "up0", "down")
        await holds("it is told", lambda: told and not told[-1].uplink)
        assert told[-1].reasons == ("br0 carrier: up0: no carrier",)
        run("ip", "link", "set", "up0", "up")
        await holds("it is told", lambda: told[-1] == Fitness())
        assert [(fit.uplink, bool(fit.doubtful)) for fit in told] == [(False, False), (True, True), (True, False)]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scene())


def test_a_monitor_with_a_defect_is_a_reading(stage: Stage, tmp_path: Path) -> None:
    class Broken:
        name, interval = "memory", 0.05

        async def read(self) -> list[Reading]:
            raise ZeroDivisionError("a defect")

        def close(self) -> None: ...

    async def scene() -> None:
        health = Health(configuration(tmp_path), [], list, lambda: None)
        broken: Monitor = Broken()
        health._monitors = lambda: [broken]  # type: ignore[method-assign]
        running = asyncio.ensure_future(health.run())
        await holds("it is told", health.readings)
        one, = health.readings()
        assert (one.component, one.state) == ("memory", State.UNKNOWN) and "a defect" in one.reason
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(scene())


READING = Reading("uplink", "br0 carrier", State.FAILED, 0, "up", "failed <= 0 of 1", "ETHTOOL_GLINK",
                  "up0: no carrier", 1.5)


class Peer:
    """Answers orders as the other host would."""

    def __init__(self) -> None:
        self.asked = self.at_once = 0
        self.answer: dict[str, Any] | HoldfastError = {
            "schema": "holdfast.health/1",
            "hosts": {"beta": {"state": "failed", "reasons": ["br0 carrier: up0: no carrier"], "reachable": True,
                               "readings": [msgspec.to_builtins(READING)]}}}

    async def ask(self, verb: str, timeout: float, **args: Any) -> dict[str, Any]:
        assert (verb, args) == ("health", {"own": True})
        self.asked += 1
        self.at_once += 1
        assert self.at_once == 1
        await asyncio.sleep(0)
        self.at_once -= 1
        if isinstance(self.answer, HoldfastError):
            raise self.answer
        return self.answer


class Own:
    """This host: what it measured, and what follows."""

    def __init__(self, *readings: Reading, fit: Fitness | None = None) -> None:
        self._readings, self._fit = list(readings), fit or Fitness()

    def readings(self) -> list[Reading]:
        return self._readings

    def fitness(self) -> Fitness:
        return self._fit


def report(peer: Peer, *readings: Reading) -> Report:
    made = Report("alpha", "beta", Own(*readings))  # type: ignore[arg-type]
    made.orders = peer  # type: ignore[assignment]
    return made


LINK = Reading("link", "link0 session", State.FAILED, reason="silent")


def test_both_hosts() -> None:
    reply = asyncio.run(report(Peer(), LINK).verb({}))
    assert reply["schema"] == "holdfast.health/1" and set(reply["hosts"]) == {"alpha", "beta"}
    assert reply["hosts"]["beta"]["readings"][0] == msgspec.to_builtins(READING)
    assert reply["hosts"]["alpha"]["state"] == "warn", "a link that is down makes no host unfit"
    assert set(asyncio.run(report(Peer()).verb({"own": True}))["hosts"]) == {"alpha"}


def test_many_who_ask_are_one_order() -> None:
    """The peer ends the session of a host that gives it too many orders at once."""
    async def scene() -> int:
        peer = Peer()
        asked = report(peer)
        replies = await asyncio.gather(*(asked.verb({}) for _ in range(32)))
        assert all(reply["hosts"]["beta"]["state"] == "failed" for reply in replies)
        return peer.asked

    assert asyncio.run(scene()) == 1


def test_a_host_that_is_gone_is_shown_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> dict[str, Any]:
        peer = Peer()
        asked = report(peer)
        await asked.verb({})
        monkeypatch.setattr("appliance.health.report.FRESH", 0.0)
        peer.answer = Unavailable("beta is not reachable over any link")
        hosts: dict[str, Any] = (await asked.verb({}))["hosts"]
        return hosts

    beta = asyncio.run(scene())["beta"]
    assert (beta["state"], beta["reachable"], beta["last_state"]) == ("unknown", False, "failed")
    assert beta["reasons"][0] == "beta is not reachable over any link" and 0 <= beta["age_s"] < 10
    assert len(beta["readings"]) == 1


@pytest.mark.parametrize("answer", [{}, {"hosts": 3}, {"hosts": {"beta": None}}, {"hosts": {"beta": {"state": "odd"}}},
                                    {"hosts": {"beta": {"state": "ok", "readings": [{"component": 1}]}}}])
def test_a_peer_that_talks_nonsense(answer: dict[str, Any]) -> None:
    peer = Peer()
    peer.answer = answer
    beta = asyncio.run(report(peer).verb({}))["hosts"]["beta"]
    assert (beta["state"], beta["readings"]) == ("unknown", []) and "cannot be understood" in beta["reasons"][0]


def told(state: str, **more: Any) -> dict[str, Any]:
    return {"state": state, "reachable": True, "reasons": [], "readings": [], **more}


@pytest.mark.parametrize(("states", "code"), [
    (("ok", "ok"), Exit.OK), (("ok", "warn"), Exit.DEGRADED), (("ok", "unknown"), Exit.DEGRADED),
    (("failed", "unknown"), Exit.FAILED), (("warn", "failed"), Exit.FAILED)])
def test_exit_codes(states: tuple[str, str], code: Exit) -> None:
    assert health.exit_code({"hosts": dict(zip(("a", "b"), map(told, states), strict=True))}) is code


def test_the_text() -> None:
    slow = Reading("disk", "/state write", State.WARN, 0.0123456, "s", "warn >= 0.01 s")
    reply = {"hosts": {
        "alpha": told("failed", reasons=["br0 carrier: up0: no carrier"],
                      readings=[msgspec.to_builtins(READING), msgspec.to_builtins(slow)]),
        "beta": told("unknown", reachable=False, reasons=["beta is not reachable"], last_state="ok", age_s=12.5),
        "gamma": told("unknown", reachable=False, reasons=["gamma is not reachable"])}}
    assert health.render(reply).splitlines() == [
        "host alpha      failed  br0 carrier: up0: no carrier",
        "  uplink  br0 carrier   failed            0 up  up0: no carrier",
        "  disk    /state write  warn          12.35 ms  warn >= 0.01 s",
        "host beta       unknown  beta is not reachable; 12.5 s ago it was ok",
        "host gamma      unknown  gamma is not reachable; nothing is known of it"]
    assert "\033[31mfailed" in health.render(reply, Screen(colour="always"))


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reply = {"schema": "holdfast.health/1", "hosts": {"alpha": told("ok"), "beta": told("warn")}}
    monkeypatch.setattr(client, "call", lambda path, verb, **words: reply if verb == "health" else None)
    assert cli.main(["health", "-j"]) == Exit.DEGRADED
    assert json.loads(capsys.readouterr().out) == reply
    assert cli.main(["health"]) == Exit.DEGRADED
    assert capsys.readouterr().out.startswith("host alpha      ok\n")
