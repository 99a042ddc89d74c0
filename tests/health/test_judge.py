# SPDX-License-Identifier: GPL-2.0-or-later
"""Judging: thresholds are left less easily than they are reached, and neither failure nor recovery is believed at once.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from appliance.health.judge import EASE, Rule, Verdict, judge, level
from appliance.health.monitor import Assessor, Counter
from appliance.health.reading import State, worst

OK, WARN, FAILED, UNKNOWN = State.OK, State.WARN, State.FAILED, State.UNKNOWN
HIGH = Rule(warn=10.0, failed=100.0)
LOW = Rule(warn=100.0, failed=10.0, above=False)
values = st.floats(0, 1000)
found = st.sampled_from(State)


def test_thresholds() -> None:
    assert [level(value, HIGH) for value in (9.9, 10, 99.9, 100)] == [OK, WARN, WARN, FAILED]
    assert [level(value, LOW) for value in (100.1, 100, 10.1, 10)] == [OK, WARN, WARN, FAILED]
    assert level(1e9, Rule(warn=1.0)) is WARN and level(1e9, Rule()) is OK
    assert HIGH.words("s") == "warn >= 10 s, failed >= 100 s" and LOW.words() == "warn <= 100, failed <= 10"


def test_a_threshold_is_left_less_easily() -> None:
    assert [level(value, HIGH, WARN) for value in (9.9, 8.0, 7.9)] == [WARN, WARN, OK]
    assert [level(value, HIGH, FAILED) for value in (80.0, 79.9, 7.9)] == [FAILED, WARN, OK]
    assert [level(value, LOW, WARN) for value in (101, 125, 126)] == [WARN, WARN, OK]
    assert level(9.9, HIGH, UNKNOWN) is OK


@given(values, found)
def test_what_is_bad_enough_is_seen_whatever_was_held(value: float, held: State) -> None:
    for rule in (HIGH, LOW):
        fresh = level(value, rule)
        kept = level(value, rule, held)
        assert worst((fresh, kept)) is kept  # holding on never hides a threshold that is crossed
        if kept is not fresh:
            assert any(bound is not None and min(value, bound) >= EASE * max(value, bound)
                       for bound in (rule.warn, rule.failed))


def test_doubt() -> None:
    """Neither a first bad reading nor the time after a failure is a reason to trust a host with more."""
    def doubtful(*levels: State) -> bool:
        verdict: Verdict | None = None
        for now, one in enumerate(levels):
            verdict = judge(verdict, one, float(now), rounds=2, settle=3.0)
        return verdict is not None and verdict.doubtful

    assert doubtful(FAILED) and doubtful(OK, FAILED)
    assert doubtful(FAILED, FAILED, OK) and not doubtful(FAILED, FAILED, OK, OK, OK, OK)
    assert not doubtful(FAILED, FAILED) and not doubtful(WARN) and not doubtful(FAILED, OK) and not doubtful(OK)


def run(*levels: State, rounds: int = 3, settle: float = 3.0) -> list[State]:
    """The states after readings a second apart."""
    verdict: Verdict | None = None
    states = []
    for now, one in enumerate(levels):
        verdict = judge(verdict, one, float(now), rounds=rounds, settle=settle)
        states.append(verdict.state)
    return states


def test_a_failure_takes_several_bad_readings_in_a_row() -> None:
    assert run(FAILED, FAILED, OK, FAILED, FAILED, FAILED) == [WARN, WARN, OK, WARN, WARN, FAILED]
    assert run(FAILED, rounds=1) == [FAILED]


def test_well_again_takes_a_while() -> None:
    assert run(FAILED, OK, OK, OK, OK, rounds=1) == [FAILED, WARN, WARN, WARN, OK]
    assert run(FAILED, OK, OK, FAILED, OK, OK, OK, OK, rounds=1) == [FAILED, WARN, WARN, FAILED, WARN, WARN, WARN, OK]
    assert run(FAILED, FAILED, OK, FAILED, OK, OK, OK, OK, rounds=2)[2:] == [WARN] * 4 + [OK] * 2
    assert run(FAILED, OK, rounds=1, settle=0) == [FAILED, OK]
    assert run(FAILED, UNKNOWN, OK, rounds=1) == [FAILED, UNKNOWN, OK]


@given(st.lists(found, min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 5))
def test_no_failure_without_enough_readings_and_none_forgotten(levels: list[State], rounds: int, settle: int) -> None:
    states = run(*levels, rounds=rounds, settle=float(settle))
    for at, state in enumerate(states):
        if levels[at] is FAILED and levels[max(0, at - rounds + 1):at + 1] == [FAILED] * rounds:
            assert state is FAILED
        if state is FAILED and (not at or states[at - 1] is not FAILED):
            assert levels[at - rounds + 1:at + 1] == [FAILED] * rounds
        lately = states[max(0, at - settle):at + 1]
        if state is OK and FAILED in lately:
            assert UNKNOWN in lately, "trusted again too soon"


def test_a_part_tells_since_when_and_why() -> None:
    now = [100.0]
    assess = Assessor("disk", 2, 3.0, clock=lambda: now[0], wall=lambda: 1000 + now[0])

    def read(value: float) -> tuple[State, float, str]:
        now[0] += 1
        one = assess.value("x", value, HIGH, unit="ms")
        return one.state, one.since, one.reason

    assert read(1) == (OK, 1101.0, "")
    assert read(1) == (OK, 1101.0, "")
    assert read(200) == (WARN, 1103.0, "200 ms (warn >= 10 ms, failed >= 100 ms)")
    assert read(200)[:2] == (FAILED, 1104.0)
    assert read(1)[:2] == (WARN, 1105.0)
    for _ in range(3):
        last = read(1)
    assert last == (OK, 1108.0, "")
    assert assess.unknown("x", "no driver").reason == "no driver"


def test_counters_that_grow_and_that_begin_anew() -> None:
    now = [0.0]
    counter = Counter(clock=lambda: now[0])

    def rate(count: float) -> float:
        now[0] += 2
        return counter.rate("rx", count)

    assert [rate(count) for count in (50, 60, 60, 3, 9)] == [0, 5, 0, 0, 3]
    assert [counter.grown("io", count) for count in (7, 9, 2, 3)] == [0, 2, 0, 1]


def test_a_whole_is_as_bad_as_its_worst_part() -> None:
    assert worst([OK, UNKNOWN, WARN, FAILED]) is FAILED
    assert worst([OK, UNKNOWN, WARN]) is WARN
    assert worst([OK, UNKNOWN]) is OK
    assert worst([UNKNOWN]) is worst([]) is UNKNOWN
