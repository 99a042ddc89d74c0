# SPDX-License-Identifier: GPL-2.0-or-later
"""When epochs end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlink.pace import Pace

seconds = st.floats(0.0005, 10)
moments = st.floats(0, 1e5)


def test_an_adaptive_epoch_ends_between_its_bounds() -> None:
    pace = Pace(True, 0.005, 0.050, 0.5)
    assert pace.earliest(10.0, 10.001) == pytest.approx(10.005), "not before the minimum"
    assert pace.latest(10.0, 10.001) == pytest.approx(10.050)
    assert pace.earliest(10.0, 10.004) == pytest.approx(10.008), "as long again as the pause"
    assert pace.earliest(10.0, 10.040) == pytest.approx(10.080)
    assert pace.latest(10.0, 10.040) == pytest.approx(10.080), "a long pause moves both"


def test_a_fixed_epoch_has_one_length() -> None:
    pace = Pace(False, 0.005, 0.025, 0.5)
    assert pace.earliest(10.0, 10.004) == pace.latest(10.0, 10.004) == pytest.approx(10.025)


def test_the_whole_time_may_be_spent_paused_if_so_configured() -> None:
    assert Pace(True, 0.001, 0.05, 1.0).earliest(10.0, 10.2) == pytest.approx(10.2)


@given(st.booleans(), seconds, seconds, st.floats(0.01, 1), moments, st.floats(0, 5))
def test_the_vm_runs_its_share(adaptive: bool, one: float, other: float, share: float, stopped: float,
                               pause: float) -> None:
    """However much output waits: paused at most `share` of each epoch, and never an end before the earliest."""
    pace = Pace(adaptive, min(one, other), max(one, other), share)
    resumed = stopped + pause
    earliest, latest = pace.earliest(stopped, resumed), pace.latest(stopped, resumed)
    slack = 1e-6 * max(1.0, earliest)
    assert resumed - slack <= earliest <= latest
    assert earliest >= stopped + (min(one, other) if adaptive else max(one, other)) - slack
    assert latest >= stopped + max(one, other) - slack
    assert resumed - stopped <= share * (earliest - stopped) + slack
