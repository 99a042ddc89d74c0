# SPDX-License-Identifier: GPL-2.0-or-later
"""What each verb prints for an answer of the service, word for word: golden/NAME.txt for people, NAME.ansi in colour;
golden/NAME.json is what the service answers. HOLDFAST_GOLDEN=write writes the first two anew, to be looked at."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from appliance import registry
from appliance.cli import main, top
from appliance.cli.screen import PLAIN
from appliance.exits import Exit
from tests.operator.pretender import Pretender

GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, tuple[str, Exit]] = {
    "status-protected": ("status", Exit.OK),
    "status-solo": ("status", Exit.DEGRADED),
    "status-fenced": ("status", Exit.FAILED),
    "health": ("health", Exit.FAILED),
    "switchover": ("switchover web1", Exit.OK),
    "drain": ("drain alpha", Exit.OK),
    "drain-stays": ("drain alpha", Exit.DEGRADED),
    "fence": ("fence beta --yes", Exit.OK),
    "protect": ("protect web1 --no-wait", Exit.OK),
    "unprotect": ("unprotect web1 --yes", Exit.OK),
    "disk-resize": ("disk resize web1 data 40GiB --no-wait", Exit.OK),
    "disk-add": ("disk add web1 data", Exit.DEGRADED),
    "disk-remove": ("disk remove web1 data --no-wait", Exit.OK),
}
"""Each file, the command whose answer it holds, and how that ends."""
ELSEWHERE = {"events", "wait", "top", "shell", "history", "log set", "log levels", "log tail"}
"""Verbs whose output is not the answer to one question; they are tested below and in files of their own."""
each = pytest.mark.parametrize(("name", "command", "code"), [(name, *case) for name, case in CASES.items()])


def reply(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return found


def declared(command: str) -> registry.Verb:
    found = registry.find(command.split())
    assert found is not None
    return found[0]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def same(file: Path, said: str) -> None:
    if os.environ.get("HOLDFAST_GOLDEN") == "write":
        file.write_text(said)
    assert said == file.read_text()


@each
def test_the_text(host: Pretender, capsys: pytest.CaptureFixture[str], name: str, command: str, code: Exit) -> None:
    host.replies[declared(command).service] = reply(name)
    assert main([*command.split(), "--control", str(host.path)]) == code
    said = capsys.readouterr()
    assert said.err == ""
    same(GOLDEN / f"{name}.txt", said.out)


@each
def test_the_text_in_colour(host: Pretender, capsys: pytest.CaptureFixture[str], name: str, command: str,
                            code: Exit) -> None:
    host.replies[declared(command).service] = reply(name)
    assert main([*command.split(), "--color", "always", "--control", str(host.path)]) == code
    coloured = capsys.readouterr().out
    plain = (GOLDEN / f"{name}.txt").read_text()
    if coloured != plain:
        same(GOLDEN / f"{name}.ansi", coloured)
    for colour in ("\033[32m", "\033[31m", "\033[33m", "\033[0m"):
        coloured = coloured.replace(colour, "")
    assert coloured == plain, "colour adds nothing but colour"


@each
def test_the_json(host: Pretender, capsys: pytest.CaptureFixture[str], name: str, command: str, code: Exit) -> None:
    """All that the service said, zeros too, and the schema that the registry promises."""
    host.replies[declared(command).service] = reply(name)
    assert main([*command.split(), "-j", "--control", str(host.path)]) == code
    out = capsys.readouterr().out
    said = json.loads(out)
    assert out.count("\n") == 1 and said["schema"] == declared(command).schema
    assert said | reply(name) == said


def test_every_verb_that_asks_the_service_is_here() -> None:
    asking = {verb.name for verb in registry.every() if verb.access is not registry.Access.LOCAL
              and verb.page == "holdfast"}
    assert asking - {declared(command).name for command, _ in CASES.values()} - ELSEWHERE == set()


# --- what comes from several answers ---

def test_events(host: Pretender, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.cli import events

    stream = [json.loads(line) for line in (GOLDEN / "events.jsonl").read_text().splitlines()]
    same(GOLDEN / "events.txt", "".join(events.line(event) + "\n" for event in stream))
    assert main(["events", "--now", "-j", "--control", str(host.path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["schema"] for line in lines} == {"holdfast.event/1"}
    assert [line["event"] for line in lines] == ["state"] * 5 + ["end-of-state"]


def test_top() -> None:
    before, after = reply("status-protected"), reply("status-protected")
    after["vms"]["web1"] |= {"checkpoints": before["vms"]["web1"]["checkpoints"] + 200}
    after["vms"]["web1"]["gate"]["released_bytes"] += 3 << 20
    after["peer"]["links"][0]["sent_bytes"] += 30 << 20
    after["peer"]["links"][0]["received_bytes"] += 4096
    found = top.measured(before, after, 2.0)
    same(GOLDEN / "top.txt", top.render(found, PLAIN) + "\n")
    assert found["schema"] == "holdfast.top/1"
    assert found["vms"]["web1"]["epochs_per_s"] == 100.0
    assert found["links"][1]["sent_bytes_per_s"] == 0.0, "zeros are not dropped"


def test_top_after_a_restart_of_the_service_does_not_guess() -> None:
    before, after = reply("status-protected"), reply("status-protected")
    after["vms"]["web1"]["checkpoints"] = 3
    found = top.measured(before, after, 1.0)
    assert found["vms"]["web1"]["epochs_per_s"] is None and " - " in top.render(found, PLAIN)


def test_top_ends_after_so_many(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    host.replies["status"] = reply("status-protected")
    assert main(["top", "-n", "2", "-w", "0.05", "--control", str(host.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["schema"] for line in lines] == ["holdfast.top/1"] * 2, "JSON where nobody looks"


# --- wait, protect ---

def asked(host: Pretender) -> list[str]:
    return [verb for verb, _ in host.asked]


@pytest.mark.parametrize(("state", "vm", "code"), [
    ("protected", [], Exit.OK), ("protected", ["web1"], Exit.OK), ("primary", [], Exit.OK),
    ("gone", [], Exit.TIMEOUT), ("protected", ["nothing"], Exit.USAGE)])
def test_wait(host: Pretender, capsys: pytest.CaptureFixture[str], state: str, vm: list[str], code: Exit) -> None:
    words = ["wait", state, *vm, "--timeout", "0.3s", "--control", str(host.path), "-j"]
    assert main(words) == code
    said = json.loads(capsys.readouterr().out)
    if code is Exit.OK:
        assert said["schema"] == "holdfast.wait/1"
        assert said["vms"] == {"web1": {"role": "primary", "phase": "protected"}}
    else:
        assert said["error"]["code"] == {Exit.TIMEOUT: "timeout", Exit.USAGE: "usage"}[code]


def test_wait_hears_the_change(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    host.move("web1", "primary", "syncing", "the first copy is under way")

    def later() -> None:
        deadline = time.monotonic() + 20
        while not host.readers and time.monotonic() < deadline:
            time.sleep(0.01)
        host.move("web1", "primary", "protected", "the backup has a whole replica")

    thread = threading.Thread(target=later)
    thread.start()
    assert main(["wait", "protected", "--timeout", "30", "--control", str(host.path)]) == 0
    thread.join()
    assert capsys.readouterr().out == "web1: primary protected\n"


def test_wait_outlives_a_service_that_starts_anew(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    import threading

    host.stop()
    started = threading.Timer(0.3, host.start)
    started.start()
    assert main(["wait", "protected", "--timeout", "30", "--control", str(host.path)]) == 0
    started.join()


def test_protect_waits_until_it_is_so(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    host.replies["protect"] = reply("protect")
    assert main(["resume", "web1", "--control", str(host.path), "-j"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "holdfast.protect/1" and said["paused"] is False and said["waited_ms"] >= 0
    assert asked(host) == ["protect", "events"]
    host.move("web1", "primary", "solo", "no backup yet")
    assert main(["protect", "web1", "--timeout", "0.2s", "--control", str(host.path)]) == Exit.TIMEOUT
    assert "web1 is primary solo" in capsys.readouterr().err
