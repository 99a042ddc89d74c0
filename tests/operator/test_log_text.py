# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast log ...`, for people and for programs."""

from __future__ import annotations

import json

import pytest

from appliance.cli import main
from tests.operator.pretender import Pretender

LEVELS = {"schema": "holdfast.log/1", "level": "info", "modules": {"link": "info", "peer": "debug"}, "own": ["peer"],
          "lines": {"info": 7, "error": 0}, "lost_lines": 0}


def test_the_levels(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    host.replies["log"] = LEVELS
    assert main(["log", "levels", "--control", str(host.path)]) == 0
    assert capsys.readouterr().out == "level info\n  peer           debug\nmodules: link, peer\n"
    host.replies["log"] = {**LEVELS, "lost_lines": 9}
    assert main(["log", "levels", "--control", str(host.path)]) == 0
    assert "9 lines were lost" in capsys.readouterr().out
    assert main(["log", "levels", "-j", "--control", str(host.path)]) == 0
    assert json.loads(capsys.readouterr().out)["lines"]["error"] == 0


def test_setting_one(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    host.replies["log-set"] = LEVELS
    assert main(["log", "set", "debug", "peer", "--control", str(host.path)]) == 0
    assert main(["log", "set", "warning", "--control", str(host.path)]) == 0
    assert host.asked == [("log-set", {"level": "debug", "module": "peer"}),
                          ("log-set", {"level": "warning", "module": None})]
    capsys.readouterr()
    assert main(["log", "set", "loud", "--control", str(host.path)]) == 64
    assert "warning" in capsys.readouterr().err


def test_the_last_lines(host: Pretender, capsys: pytest.CaptureFixture[str]) -> None:
    host.replies["log-tail"] = {"schema": "holdfast.log-tail/1", "lines": ["a", "b"], "lost_lines": 0}
    assert main(["log", "tail", "-n", "2", "--control", str(host.path)]) == 0
    assert capsys.readouterr().out == "a\nb\n" and host.asked == [("log-tail", {"lines": 2})]
