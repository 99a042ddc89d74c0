# SPDX-License-Identifier: GPL-2.0-or-later
"""When an epoch ends: the pacing rule, pure arithmetic on times in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """Fixed: an epoch every `maximum`. Adaptive: as soon as output waits, within bounds.

    Invariant: however much output waits, the VM runs at least (1 - pause_share) of the time.
    """

    adaptive: bool
    minimum: float
    maximum: float
    pause_share: float

    def earliest(self, stopped: float, resumed: float) -> float:
        """The first moment the next epoch may end; the last one paused the VM from `stopped` to `resumed`."""
        rest = (resumed - stopped) * (1 / self.pause_share - 1)
        floor = self.minimum if self.adaptive else self.maximum
        return max(stopped + floor, resumed + rest)

    def latest(self, stopped: float, resumed: float) -> float:
        """The moment the epoch ends even when the VM has sent nothing."""
        return max(stopped + self.maximum, self.earliest(stopped, resumed))
