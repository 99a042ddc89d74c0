# SPDX-License-Identifier: GPL-2.0-or-later
"""How long a lease must be, and how long a silence means death, on the machines and links as they are. Pure.

Both follow the worst that was measured lately, so that a loaded machine does not flap: the measure jumps up at
once and falls back by half in HALF_LIFE seconds. Both stay within the bounds of [timing].
"""

from __future__ import annotations

from appliance.config import Timing

HALF_LIFE = 5.0
LEASE_MARGIN = 2.0
"""A lease lasts this many times the oldest echo seen: one late answer does not make the VM mute."""
SILENCE_MARGIN = 4.0
"""A silence is death after this many times the longest pause between two signs of life."""


class _Worst:
    """The largest value lately, in seconds."""

    def __init__(self) -> None:
        self._value, self._at = 0.0, 0.0

    def add(self, value: float, now: float) -> None:
        if value >= self.at(now):
            self._value, self._at = value, now

    def at(self, now: float) -> float:
        return float(self._value * 0.5 ** ((now - self._at) / HALF_LIFE))


class Rhythm:
    """Measures in seconds; `now` is monotonic."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._pause, self._echo = _Worst(), _Worst()

    def beat(self, pause: float, now: float) -> None:
        """A sign of life came `pause` after the one before, on the same link."""
        self._pause.add(pause, now)

    def echo(self, age: float, now: float) -> None:
        """An answer came `age` after what it answers."""
        self._echo.add(age, now)

    def lease(self, now: float) -> float:
        """For how long an answer lets this host speak."""
        return max(self._timing.lease, min(LEASE_MARGIN * self._echo.at(now), self._timing.lease_max))

    def timeout(self, now: float) -> float:
        """The silence after which the peer is down."""
        return max(self._timing.timeout, min(SILENCE_MARGIN * self._pause.at(now), self._timing.timeout_max))
