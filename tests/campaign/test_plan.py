# SPDX-License-Identifier: GPL-2.0-or-later
"""The seed decides all; every kind of fault comes up evenly; every fault that can be injected has its kind."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import UsageError
from appliance.lab import campaign
from appliance.lab.blueprint import Options
from appliance.lab.campaign_kinds import KINDS
from appliance.lab.campaign_plan import rounds
from vmlink import inject

WEIGHTS = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 4), min_size=1)
SEEDS = st.integers(0, 1 << 31)


@given(SEEDS, st.integers(0, 60), st.integers(0, 60), WEIGHTS)
def test_more_rounds_do_not_change_those_before(seed: int, few: int, more: int, weights: dict[str, int]) -> None:
    short, long = rounds(seed, few, weights), rounds(seed, few + more, weights)
    assert long[:few] == short and [one.number for one in long] == list(range(1, few + more + 1))
    assert [one.chance().random() for one in short] == [one.chance().random() for one in long[:few]]


@given(SEEDS, st.integers(1, 4), WEIGHTS)
def test_every_kind_comes_up_as_often_as_it_weighs(seed: int, passes: int, weights: dict[str, int]) -> None:
    size = sum(weights.values())
    plan = rounds(seed, passes * size, weights)
    assert Counter(one.kind for one in plan) == {kind: passes * weight for kind, weight in weights.items()}
    for begin in range(0, len(plan), size):
        assert {one.kind for one in plan[begin : begin + len(weights)]} == set(weights)


def test_another_seed_is_another_campaign() -> None:
    weights = {kind: found.weight for kind, found in KINDS.items()}
    plans = {tuple(one.kind for one in rounds(seed, 40, weights)) for seed in range(20)}
    assert len(plans) == 20
    chances = {one.chance().random() for seed in range(5) for one in rounds(seed, 40, weights)}
    assert len(chances) == 200


def test_every_injection_point_is_hit() -> None:
    hit = {kind.removeprefix("checkpoint-").rpartition(":")[0] for kind in KINDS if kind.startswith("checkpoint-")}
    # No VM of a campaign has other disks in the end: see test_disk_changes.
    elsewhere = {point for point in inject.POINTS if point.count(".") > 1}
    assert hit == set(inject.POINTS) - elsewhere


def test_one_round_alone_is_the_one_it_is_among_all() -> None:
    args = campaign.arguments(["--seed", "7", "--round", "12"])
    [alone] = campaign.plan(args, 7, KINDS)
    among = campaign.plan(campaign.arguments(["--count", "30"]), 7, KINDS)
    assert alone == among[11]


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="no fault 'meteor'"):
        campaign.chosen("host-crash,meteor", Options())
    assert set(campaign.chosen("host-crash", Options())) == {"host-crash"}
    everywhere = {name for name, kind in KINDS.items() if not kind.arbitrated and not kind.storage}
    assert everywhere <= set(campaign.chosen(None, Options())) < set(KINDS)


def test_faults_of_disks_are_for_labs_with_disks() -> None:
    with pytest.raises(UsageError, match="no fault 'disk-fail'"):
        campaign.chosen("disk-fail", Options())
    on = {storage: {name for name, kind in KINDS.items() if kind.storage in ("", storage)} for storage in
          ("disk", "volume")}
    for storage, kinds in on.items():
        assert set(campaign.chosen(None, campaign.GUESTS[storage])) == kinds < set(KINDS)
