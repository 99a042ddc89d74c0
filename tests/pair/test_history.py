# SPDX-License-Identifier: GPL-2.0-or-later
"""What both hosts remember of a failover, whichever is asked, and after the one that died is back."""

from __future__ import annotations

import os
from typing import Any

import pytest

from appliance import control
from appliance.lab import blueprint
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def entries(pair: Pair, host: str) -> list[dict[str, Any]]:
    reply = control.call(blueprint.control_path(pair.lab.name, host), "history", timeout=10.0)
    assert reply["schema"] == "holdfast.history/1"
    assert {name: one["reachable"] for name, one in reply["hosts"].items()} == {"alpha": True, "beta": True}
    found: list[dict[str, Any]] = reply["entries"]
    return found


def test_a_death_and_a_switchover_are_remembered(pair: Pair) -> None:
    victim, survivor = pair.protected()
    term = pair.term()
    pair.lab.fault("crash", victim)
    pair.takes_over(survivor)
    pair.client.goes_on()
    pair.heal(victim)
    pair.protected(60)
    control.call(blueprint.control_path(pair.lab.name, victim), "switchover", timeout=30.0, vm="web1")
    pair.protected(60)

    def told() -> dict[tuple[str, int], dict[str, Any]]:
        return {(one["kind"], one["term"]): one for one in entries(pair, victim) if one["term"] > term}

    until("the history is whole", lambda: {one["result"] for one in told().values()} <= {"protected", "standby"})
    found = told()
    assert set(found) == {("takeover", term + 1), ("joined", term + 1), ("switchover", term + 2), ("given", term + 2)}
    takeover = found["takeover", term + 1]
    assert (takeover["host"], takeover["result"]) == (survivor, "protected")
    assert "carrier lost" in takeover["cause"] and "granted" in takeover["grant"]
    moments = [takeover[f"{name}_at"] for name in ("heard", "detected", "granted", "recorded", "resumed", "speaks",
                                                   "first_frame", "resync", "protected", "ended")]
    assert None not in moments and moments == sorted(moments), moments
    assert takeover["ms"]["dark"] == pytest.approx(sum(takeover["ms"][step] for step in (
        "grant", "record", "load", "fence")), abs=0.01)
    given, taken = found["given", term + 2], found["switchover", term + 2]
    assert (given["host"], given["cause"], given["result"]) == (survivor, "ordered by the operator", "standby")
    assert (taken["host"], taken["result"], taken["epoch"]) == (victim, "protected", given["epoch"])
    assert entries(pair, survivor) == entries(pair, victim), "both hosts tell the same"
    pair.sound()
