# SPDX-License-Identifier: GPL-2.0-or-later
"""A short campaign on a pair whose VM lives on a volume that the hosts share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from appliance.errors import HoldfastError
from appliance.lab import blueprint, guest_checks, volume
from appliance.lab.blueprint import Options
from appliance.lab.campaign import GUESTS, Campaign
from appliance.lab.campaign_faults import Play
from appliance.lab.campaign_kinds import KINDS, Kind
from appliance.lab.campaign_plan import Round
from appliance.lab.lab import down
from tests.lab.naming import traces

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("tgtd") is None, reason="needs root and tgt"),
]


@pytest.fixture
def options(monkeypatch: pytest.MonkeyPatch) -> Iterator[Options]:
    monkeypatch.setattr("appliance.lab.campaign.heed", lambda _: None)
    given = f"cv{os.getpid()}"
    yield msgspec.structs.replace(GUESTS["volume"], name=given)
    left = [trace for number in (1, 2) for trace in traces(f"{given}-{number}")]
    for number in (1, 2):
        down(f"{given}-{number}")
    assert not left, left


def _writes_all_the_time(play: Play) -> None:
    """The VM writes faster than the volume takes it, with all its requests under way at each pause: it is slowed, and
    stays protected."""
    lab = play.stage.lab
    copies = _copies(play)
    play.tell("the VM writes as fast as it can")
    status, said = guest_checks.run(lab, "fio rw=write bs=1M size=200M iodepth=64 direct=1 ioengine=libaio "
                                         "time_based=1 runtime=6")  # fmt: skip
    assert not status, said
    if _copies(play) != copies:
        raise HoldfastError("its replica was lost meanwhile")


def _copies(play: Play) -> int:
    return blueprint.log_path(play.stage.lab.name, play.primary).read_text().count("sync-begin")


def _a_sin(play: Play) -> None:
    """The root directory of the volume is gone, below a VM that has it in memory."""
    play.tell("a block of the volume is not what the VM wrote")
    lab = play.stage.lab
    assert lab.options.volume is not None
    with volume.image(lab.name, lab.options.volume).open("r+b") as file:
        blocks = file.read(64 << 20)
        file.seek(blocks.index(b"lost+found") & ~4095)
        file.write(bytes(4096))
    play.goes_on()


@pytest.mark.timeout(300)
def test_faults_of_a_volume_are_survived_and_sins_found(options: Options, tmp_path: Path) -> None:
    kinds = ["writes", "checkpoint-volume.half:kill", "volume-away", "checkpoint-redo.saved:kill", "sin"]
    ours = {"writes": Kind(_writes_all_the_time), "sin": Kind(_a_sin)}
    campaign = Campaign(options, tmp_path, {**KINDS, **ours})
    campaign.hold([Round(number, kind, 7) for number, kind in enumerate(kinds, start=1)], lambda _: None)
    *survived, sin = campaign.outcomes
    assert [outcome.problems for outcome in survived] == [[], [], [], []]
    assert "e2fsck" in " ".join(sin.problems)
