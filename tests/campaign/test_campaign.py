# SPDX-License-Identifier: GPL-2.0-or-later
"""A short campaign as a person runs it, and campaigns against a pair that does what it must not."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.lab import topology
from appliance.lab.blueprint import Options
from appliance.lab.campaign import Campaign, chosen
from appliance.lab.campaign_faults import Play
from appliance.lab.campaign_kinds import KINDS, Kind
from appliance.lab.campaign_plan import Round, rounds
from appliance.lab.campaign_report import SUMS
from appliance.lab.lab import down
from appliance.lab.topology import UPLINK, VM_MAC
from tests.lab.naming import traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
ROOT = Path(__file__).resolve().parents[2]
SEED = 20


@pytest.fixture
def name() -> Iterator[str]:
    """For labs, which are numbered; fails when one is left."""
    given = f"c{os.getpid()}"
    yield given
    left = [trace for number in range(1, 5) for trace in traces(f"{given}-{number}")]
    for number in range(1, 5):
        down(f"{given}-{number}")
    assert not left, left


def start(name: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "appliance.lab.campaign", "--name", name, "--out", str(out), *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(300)
def test_a_short_campaign_is_survived(name: str, tmp_path: Path) -> None:
    campaign = start(name, tmp_path, "--count", "10", "--seed", str(SEED))
    said, _ = campaign.communicate(timeout=290)
    assert campaign.returncode == 0, said
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["schema", "seed", "faults", "survived", *SUMS, "by_fault"]
    assert (report["schema"], report["seed"]) == ("holdfast.campaign/1", SEED)
    assert (report["faults"], report["survived"]) == (10, 10)
    assert [report[key] for key in SUMS] == [0] * 5
    plan = rounds(SEED, 10, {kind: found.weight for kind, found in chosen(None, Options()).items()})
    assert set(report["by_fault"]) == {one.kind for one in plan}
    assert sum(found["count"] for found in report["by_fault"].values()) == 10
    assert all(found["gap_ms"]["max"] > 0 for found in report["by_fault"].values())
    assert "10 of 10 faults survived" in said and not (tmp_path / "failures").exists()


@pytest.mark.timeout(120)
def test_an_interrupted_campaign_leaves_no_lab(name: str, tmp_path: Path) -> None:
    campaign = start(name, tmp_path, "--count", "10", "--seed", str(SEED))
    assert campaign.stdout is not None
    for line in campaign.stdout:
        if "  1/10" in line:
            break
    campaign.send_signal(signal.SIGINT)
    said, _ = campaign.communicate(timeout=60)
    assert campaign.returncode == 130, said
    assert json.loads((tmp_path / "report.json").read_text())["faults"] == 1


def _a_voice(play: Play) -> None:
    """The backup says one word in the VM's name."""
    play.tell("the backup speaks")
    with topology.inside(play.stage.lab.netns(play.backup)):
        mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with mouth:
        mouth.bind((UPLINK, 0))
        # To the switch alone: the client must not notice.
        mouth.send(bytes.fromhex("020000770003" + VM_MAC.replace(":", "") + "0806") + bytes(28))
    play.goes_on()


def _a_reset(play: Play) -> None:
    """The VM's redis ends the client's connections."""
    play.tell("redis ends every connection")
    redis = play.stage.client._redis()
    redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    redis.close()
    play.goes_on()


def _amnesia(play: Play) -> None:
    """The VM forgets what it was told."""
    play.tell("redis forgets everything")
    redis = play.stage.client._redis()
    redis.command("FLUSHALL")
    redis.close()
    play.goes_on()


def _no_return(play: Play) -> None:
    """A host dies and is never healed."""
    play.fault("crash", play.backup)
    play.goes_on()


Check = Callable[[dict[str, object]], bool]
SINS: dict[str, tuple[Callable[[Play], None], Check]] = {
    "voice": (_a_voice, lambda outcome: outcome["two_speakers"] == 1),
    "reset": (_a_reset, lambda outcome: outcome["resets"] == 3),
    "amnesia": (_amnesia, lambda outcome: bool(outcome["lost_acked_writes"])),
    "no-return": (_no_return, lambda outcome: outcome["not_reprotected"] == 1),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("sin", SINS)
def test_what_must_not_be_is_found_and_the_campaign_goes_on(
    sin: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.lab.campaign.PROTECTED_S", 3.0)
    monkeypatch.setattr("appliance.lab.campaign.heed", lambda _: None)
    play, found = SINS[sin]
    kinds = {sin: Kind(play), "link-down:0": KINDS["link-down:0"]}
    campaign = Campaign(Options(name=name), tmp_path, kinds, repeat="again")
    told: list[str] = []
    campaign.hold([Round(1, sin, 5), Round(2, "link-down:0", 5)], told.append)
    assert [outcome.survived for outcome in campaign.outcomes] == [False, True]
    evidence = json.loads((tmp_path / "failures" / "round-0001" / "evidence.json").read_text())
    assert found(evidence["outcome"]), evidence["outcome"]
    assert evidence["repeat"] == "again ROUND=1" and evidence["turns"] and evidence["log_tail"]["alpha"]
    assert "protected" in (tmp_path / "failures" / "round-0001" / "alpha.log").read_text()
    assert any("NOT SURVIVED" in line for line in told)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["faults"], report["survived"]) == (2, 1)


@pytest.mark.timeout(120)
def test_the_first_lab_that_failed_can_be_kept(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.lab.campaign.heed", lambda _: None)
    campaign = Campaign(Options(name=name), tmp_path, {"voice": Kind(_a_voice)}, keep_failed=True)
    campaign.hold([Round(1, "voice", 5)], lambda _: None)
    assert campaign.kept == f"{name}-1" and traces(campaign.kept)
    assert down(campaign.kept)
