# SPDX-License-Identifier: GPL-2.0-or-later
"""What the readings of a host mean for the VMs on it. Pure.

Only what has failed counts, and `judge` lets nothing fail in haste. What merely looks bad (a busy processor, a slow
disk, a link that is down) stays a warning for people: moving a VM because of noise would cost more than the noise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from appliance.health.reading import Reading, State
from appliance.placement import Condition

PARTS = {"uplink": "uplink", "disk": "disk", "memory": "rest", "cpu": "rest", "qemu": "rest"}
"""For which part of its host a component counts. The others, links and clocks, make no host unfit."""
LONGEST = 200
"""Characters of one reason."""
MOST = 8
"""Reasons told."""


@dataclass(frozen=True)
class Fitness:
    """Is each part well enough for a VM? `reasons`: what is not, for people. `doubtful`: parts that are, but have not
    been lately, or may not be for long: nothing comes here for their sake."""

    uplink: bool = True
    disk: bool = True
    rest: bool = True
    reasons: tuple[str, ...] = ()
    doubtful: frozenset[str] = frozenset()

    @property
    def whole(self) -> bool:
        return self.uplink and self.disk and self.rest

    def condition(self) -> Condition:
        """The same, as hosts tell it to each other."""
        return Condition(self.uplink, self.disk, self.rest, reasons=self.reasons, doubtful=self.doubtful)


def fitness(readings: Iterable[Reading]) -> Fitness:
    """Of the host that has these readings."""
    weighed = [reading for reading in readings if reading.component in PARTS]
    failed = [reading for reading in weighed if reading.state is State.FAILED]
    doubtful = frozenset(PARTS[reading.component] for reading in weighed if reading.doubtful)
    parts = {PARTS[reading.component] for reading in failed}
    reasons = tuple(f"{reading.subject}: {reading.reason}"[:LONGEST] for reading in failed[:MOST])
    return Fitness("uplink" not in parts, "disk" not in parts, "rest" not in parts, reasons, doubtful - parts)
