# SPDX-License-Identifier: GPL-2.0-or-later
"""report.json has exactly the shape that was promised, whatever became of the rounds."""

from __future__ import annotations

import json

from appliance.lab.campaign_report import Outcome, build, line, table


def test_a_report() -> None:
    outcomes = [
        Outcome(1, "host-crash", 7, gap_ms=70.04),
        Outcome(2, "host-crash", 7, gap_ms=90.0),
        Outcome(3, "link-down:0", 7, gap_ms=8.0, resets=2, lost_acked_writes=3, problems=["gone"]),
        Outcome(4, "host-crash", 7, not_reprotected=1, two_speakers=1, early_frames=5, problems=["late"]),
    ]
    report = build(7, outcomes)
    assert json.loads(json.dumps(report, allow_nan=False)) == {
        "schema": "holdfast.campaign/1",
        "seed": 7,
        "faults": 4,
        "survived": 2,
        "early_frames": 5,
        "two_speakers": 1,
        "lost_acked_writes": 3,
        "resets": 2,
        "not_reprotected": 1,
        "by_fault": {
            "host-crash": {"count": 3, "gap_ms": {"p50": 70.0, "p95": 90.0, "max": 90.0}},
            "link-down:0": {"count": 1, "gap_ms": {"p50": 8.0, "p95": 8.0, "max": 8.0}},
        },
    }
    assert "2 of 4 faults survived" in table(report)


def test_a_kind_that_was_never_measured() -> None:
    report = build(1, [Outcome(1, "uplink-down", 1, problems=["nobody took over"])])
    assert report["by_fault"]["uplink-down"]["gap_ms"] == {"p50": None, "p95": None, "max": None}
    json.dumps(report, allow_nan=False)
    assert table(report)


def test_a_round_is_told_with_what_went_wrong() -> None:
    good, bad = Outcome(1, "host-crash", 7, ["crash of alpha"], 71.2, 4.0), Outcome(2, "x", 7, problems=["a", "b"])
    assert "crash of alpha; gap 71 ms; survived" in line(good, 300)
    assert "NOT SURVIVED: a | b" in line(bad, 300)
