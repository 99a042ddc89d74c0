# SPDX-License-Identifier: GPL-2.0-or-later
"""What every monitor is, and the memory that turns what it measures into readings."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from appliance.health.judge import Rule, Verdict, judge, level
from appliance.health.reading import Reading, State

Clock = Callable[[], float]


class Monitor(Protocol):
    """Reads one part of the host again and again.

    `read` returns everything that the monitor watches, also what it cannot know (`unknown`, with the reason). It
    does not block, does not raise for a host that is not well, and takes at most a few ms of this process.
    """

    @property
    def name(self) -> str: ...

    @property
    def interval(self) -> float:
        """Seconds between two readings."""

    async def read(self) -> list[Reading]: ...

    def close(self) -> None: ...


class Assessor:
    """Remembers for one component what was held of its subjects. `rounds`, `settle`: see `judge`."""

    def __init__(self, component: str, rounds: int, settle: float, *, clock: Clock = time.monotonic,
                 wall: Clock = time.time) -> None:
        self._component, self._rounds, self._settle = component, rounds, settle
        self._clock, self._wall = clock, wall
        self._held: dict[str, tuple[Verdict, float]] = {}

    def value(self, subject: str, value: float, rule: Rule, *, unit: str = "", source: str = "", reason: str = "",
              digits: int = 3) -> Reading:
        """A reading of a measured value; `reason` is told when it is not ok."""
        held = self._held[subject][0].state if subject in self._held else State.OK
        verdict, since = self._judge(subject, level(value, rule, held), rule.rounds)
        state = verdict.state
        threshold = rule.words(unit)
        if state is not State.OK and not reason:
            reason = f"{round(value, digits):g} {unit}".rstrip() + f" ({threshold})"
        return Reading(self._component, subject, state, round(value, digits), unit, threshold, source,
                       "" if state is State.OK else reason, since, verdict.doubtful)

    def found(self, subject: str, found: State, *, source: str = "", reason: str = "", value: float | None = None,
              unit: str = "", threshold: str = "", rounds: int | None = None) -> Reading:
        """A reading whose state needs no threshold."""
        verdict, since = self._judge(subject, found, rounds)
        if verdict.state is State.WARN and found is State.OK:
            reason = "well again, but only just"
        return Reading(self._component, subject, verdict.state, value, unit, threshold, source, reason, since,
                       verdict.doubtful)

    def unknown(self, subject: str, reason: str, source: str = "") -> Reading:
        """A reading of what cannot be measured here."""
        return self.found(subject, State.UNKNOWN, source=source, reason=reason)

    def forget(self, subject: str) -> None:
        """The subject is gone for good."""
        self._held.pop(subject, None)

    def _judge(self, subject: str, found: State, rounds: int | None) -> tuple[Verdict, float]:
        before, since = self._held.get(subject, (None, 0.0))
        after = judge(before, found, self._clock(), rounds=rounds or self._rounds, settle=self._settle)
        if before is None or after.state is not before.state:
            since = round(self._wall(), 3)
        self._held[subject] = after, since
        return after, since


class Counter:
    """How fast counters grow, each known by a name."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, float]] = {}

    def rate(self, name: str, count: float) -> float:
        """Per second since the last look; 0 at the first, and for a counter that began anew."""
        now = self._clock()
        before, at = self._last.get(name, (count, now))
        self._last[name] = count, now
        return (count - before) / (now - at) if count > before and now > at else 0.0

    def grown(self, name: str, count: float) -> float:
        """By how much since the last look; 0 at the first."""
        before, _ = self._last.get(name, (count, 0.0))
        self._last[name] = count, self._clock()
        return max(0.0, count - before)


class Lately:
    """What happened within the last `seconds`, so that a moment's event is still seen when somebody looks."""

    def __init__(self, seconds: float, clock: Clock = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._events: deque[tuple[float, float]] = deque(maxlen=1000)

    def add(self, amount: float) -> list[float]:
        """Note that `amount` happened now, unless it is 0. Returns all the amounts of late, never empty."""
        now = self._clock()
        if amount > 0:
            self._events.append((now, amount))
        while self._events and now - self._events[0][0] > self._seconds:
            self._events.popleft()
        return [amount for _, amount in self._events] or [0.0]
