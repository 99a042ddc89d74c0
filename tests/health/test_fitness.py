# SPDX-License-Identifier: GPL-2.0-or-later
"""What readings mean for a VM: only a failure makes a host unfit, and a host in doubt gets no VM."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.health.fitness import LONGEST, MOST, PARTS, Fitness, fitness
from appliance.health.reading import Reading, State
from appliance.placement import Condition, judge
from appliance.spoken import LIMIT

COMPONENTS = (*PARTS, "link", "clock")
readings = st.lists(st.builds(Reading, st.sampled_from(COMPONENTS), st.text(max_size=8), st.sampled_from(State),
                              reason=st.text(max_size=400), doubtful=st.booleans()), max_size=30)


@given(readings)
def test_a_part_is_unfit_when_something_of_it_has_failed(found: list[Reading]) -> None:
    broken = {PARTS[one.component] for one in found if one.state is State.FAILED and one.component in PARTS}
    fit = fitness(found)
    assert {part for part in ("uplink", "disk", "rest") if not getattr(fit, part)} == broken
    assert fit.whole is not bool(broken) and bool(fit.reasons) is bool(broken)
    assert not fit.doubtful & broken and fit.condition().broken == broken
    told = msgspec.json.encode(fit.condition())
    assert len(told) <= 4 * LIMIT and msgspec.json.decode(told, type=Condition) == fit.condition()


def test_reasons_are_bounded() -> None:
    fit = fitness([Reading("disk", "x", State.FAILED, reason="y" * 1000)] * 100)
    assert len(fit.reasons) == MOST and all(len(reason) <= LONGEST for reason in fit.reasons)


@pytest.mark.parametrize("component", ["link", "clock"])
def test_what_makes_no_host_unfit(component: str) -> None:
    assert fitness([Reading(component, "x", State.FAILED)]) == Fitness()


def test_noise_moves_nothing() -> None:
    found = [Reading(component, "x", State.WARN) for component in COMPONENTS]
    assert fitness(found) == Fitness()
    assert not judge(fitness(found).condition(), Condition(), "").move


UPLINK = Condition(uplink=False, reasons=("br0 carrier: up0: no carrier",))


def test_a_vm_moves_to_a_host_that_is_better_off() -> None:
    assert "up0: no carrier" in judge(UPLINK, Condition(), "").move
    assert judge(Condition(uplink=False, disk=False), Condition(disk=False), "").move
    assert not judge(UPLINK, UPLINK, "").move
    assert not judge(UPLINK, Condition(drained=True), "").move
    assert not judge(UPLINK, Condition(), "too small").move


def test_a_vm_does_not_move_to_a_host_in_doubt() -> None:
    doubtful = Condition(doubtful=frozenset({"uplink"}))
    assert not judge(UPLINK, doubtful, "").move, "both may lose their neighbours at the same time"
    assert not judge(doubtful, Condition(), "").move, "doubt alone is no reason to leave"
    assert judge(Condition(uplink=False, rest=False), doubtful, "").move
