# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench runner: the shape of its report, and that a group that fails is told and costs no other group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Unavailable
from tests.bench import run

RESULT = {"name": "crash.gap.p50", "value": 104.0, "unit": "ms", "conditions": {"crashes": 20}}


def groups(monkeypatch: pytest.MonkeyPatch, **made: Any) -> None:
    def run_group(group: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
        if isinstance(made[group], Exception):
            raise made[group]
        return [{**made[group], "conditions": {**made[group]["conditions"], **settings}}]

    monkeypatch.setattr(run, "run_group", run_group)


def test_the_report_has_the_documented_shape(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    groups(monkeypatch, crash=RESULT)
    assert run.main(["--only", "crash", "--set", "seed=7", "--out", str(tmp_path / "new" / "report.json")]) == 0
    report = json.loads((tmp_path / "new" / "report.json").read_text())
    assert report["schema"] == "holdfast.bench/1"
    (result,) = report["results"]
    assert list(result) == ["name", "value", "unit", "goal", "better", "conditions"]
    assert (result["value"], result["goal"], result["better"]) == (104.0, 150, "lower")
    assert result["conditions"]["seed"] == 7 and result["conditions"]["cpus"] >= 1


def test_a_missed_goal_is_shown_but_no_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups(monkeypatch, crash={**RESULT, "value": 151.0})
    assert run.main(["--only", "crash", "--out", str(tmp_path / "r.json")]) == 0
    assert "MISSED" in capsys.readouterr().out


def test_a_group_that_cannot_be_measured_costs_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups(monkeypatch, echo=Unavailable("no guest image", "make image"), crash=RESULT)
    assert run.main(["--only", "echo,crash", "--out", str(tmp_path / "r.json")]) == 1
    assert len(json.loads((tmp_path / "r.json").read_text())["results"]) == 1
    assert "echo: not measured: no guest image (make image)" in capsys.readouterr().err


def test_an_unknown_group_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["--only", "chekpoint"])
    assert "there are checkpoint, echo" in capsys.readouterr().err


def test_higher_can_be_better() -> None:
    result = run.complete({"name": "gate.bulk.ratio", "value": 0.6, "unit": "1"}, {})
    assert run.verdict(result) == "met" and ">= 0.5" in run.line(result)
    assert run.verdict({**result, "value": 0.4}) == "MISSED"
