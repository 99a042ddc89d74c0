# SPDX-License-Identifier: GPL-2.0-or-later
"""From a value and its thresholds to a state that does not flap. Pure.

Two things keep a state steady. A value that has crossed a threshold must come back by a fifth of it (`EASE`) before
it counts as back. And a part is `failed` only after several bad readings in a row, and `ok` again only after a while
without one. In between it is `warn`, and doubtful: no reason to leave the host, but none to come to it either.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.health.reading import State

EASE = 0.8
"""A threshold that was crossed counts as this much less (or, where small values are bad, as much more)."""
_GRAVITY = {State.UNKNOWN: -1, State.OK: 0, State.WARN: 1, State.FAILED: 2}


@dataclass(frozen=True)
class Rule:
    """Thresholds of a value. `warn`, `failed`: None for never. `above`: are large values the bad ones?

    `rounds`: bad readings in a row that make a failure; None for the configured number.
    """

    warn: float | None = None
    failed: float | None = None
    above: bool = True
    rounds: int | None = None

    def words(self, unit: str = "") -> str:
        """As people read it: "warn >= 1 s, failed >= 10 s"."""
        sign = ">=" if self.above else "<="
        bounds = (("warn", self.warn), ("failed", self.failed))
        return ", ".join(f"{name} {sign} {bound:g} {unit}".rstrip() for name, bound in bounds if bound is not None)


@dataclass(frozen=True)
class Verdict:
    """What is held of one thing. Times are monotonic seconds.

    bad: readings in a row at the level of failure. well: since when none was, after a failure, until it is forgotten.
    """

    state: State
    since: float
    bad: int = 0
    well: float | None = None

    @property
    def doubtful(self) -> bool:
        """May it be about to fail, or has it failed lately?"""
        return self.state is State.WARN and (self.bad > 0 or self.well is not None)


def level(value: float, rule: Rule, held: State = State.OK) -> State:
    """The state that `value` alone stands for; `held`: the state so far, which is left less easily."""
    for state, bound in ((State.FAILED, rule.failed), (State.WARN, rule.warn)):
        if bound is None:
            continue
        if _GRAVITY[held] >= _GRAVITY[state]:
            bound = bound * EASE if rule.above else bound / EASE
        if value >= bound if rule.above else value <= bound:
            return state
    return State.OK


def judge(before: Verdict | None, found: State, now: float, *, rounds: int, settle: float) -> Verdict:
    """The verdict after a reading at level `found`.

    `rounds` readings of `failed` in a row make the verdict failed, the first ones a warning; a warning it is after a
    failure too, for `settle` seconds. What is not known any more is not known at once.
    """
    held = before.state if before is not None else None
    bad = (before.bad if before is not None else 0) + 1 if found is State.FAILED else 0
    well: float | None = None
    if found is State.FAILED:
        state = State.FAILED if bad >= rounds or held is State.FAILED else State.WARN
        if state is State.WARN and before is not None and before.well is not None:
            well = now  # what failed lately is not forgotten for another bad reading
    elif found is State.UNKNOWN or before is None:
        state = found
    else:
        well = now if held is State.FAILED else before.well
        if well is not None and now - well >= settle:
            well = None
        state = found if well is None else State.WARN
    since = before.since if before is not None and state is held else now
    return Verdict(state, since, bad, well)
