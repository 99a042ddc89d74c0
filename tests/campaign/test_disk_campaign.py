# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on a pair whose VM has a disk: a short one, and one in which the disk is not what it must be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab import disks
from appliance.lab.blueprint import DISK_GUEST_MEMORY, Options
from appliance.lab.campaign import Campaign
from appliance.lab.campaign_faults import Play
from appliance.lab.campaign_kinds import KINDS, Kind
from appliance.lab.campaign_plan import Round
from appliance.lab.lab import down
from tests.lab.naming import traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="needs root and FUSE"),
]
WELL, OTHER = b"one byte would do", 700 << 20  # where nothing lies


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Options]:
    monkeypatch.setattr("appliance.lab.campaign.heed", lambda _: None)
    monkeypatch.setattr("appliance.lab.quiet.SAME_S", 5.0)
    given = f"cd{os.getpid()}"
    yield Options(name=given, guest="disk", memory=DISK_GUEST_MEMORY, disk_faults=True)
    left = [trace for number in (1, 2) for trace in traces(f"{given}-{number}")]
    for number in (1, 2):
        down(f"{given}-{number}")
    assert not left, left


@pytest.mark.timeout(300)
def test_faults_of_disks_are_survived(options: Options, tmp_path: Path) -> None:
    kinds = ["checkpoint-disk.applying:kill", "link-down-in-copy", "disk-fail"]
    campaign = Campaign(options, tmp_path, KINDS)
    campaign.hold([Round(number, kind, 20) for number, kind in enumerate(kinds, start=1)], lambda _: None)
    assert [outcome.problems for outcome in campaign.outcomes] == [[], [], []]
    assert json.loads((tmp_path / "report.json").read_text())["survived"] == 3


def _a_sin(play: Play) -> None:
    """The VM forgets a transaction that it acknowledged; the replica has bytes that the VM never wrote."""
    play.tell("a transaction is gone, and the replica is not what it was")
    assert play.stage.database is not None
    session = play.stage.database._inspector.session()
    session.query("DELETE FROM bank_history WHERE client = 0 AND number = 1")
    session.close()
    lab = play.stage.lab
    with disks.image(lab.name, play.backup, 0, lab.options.all_disks()[0]).open("r+b") as replica:
        replica.seek(OTHER)
        replica.write(WELL)
    play.goes_on()


@pytest.mark.timeout(180)
def test_what_must_not_be_is_found(options: Options, tmp_path: Path) -> None:
    campaign = Campaign(options, tmp_path, {"sin": Kind(_a_sin, storage="disk")})
    campaign.hold([Round(1, "sin", 5)], lambda _: None)
    [outcome] = campaign.outcomes
    assert not outcome.survived and outcome.lost_acked_writes >= 1
    found = " | ".join(outcome.problems)
    assert "transaction 0/1 was acknowledged and is not there" in found and "disk0 differs" in found
