# SPDX-License-Identifier: GPL-2.0-or-later
"""The plan of a campaign: which fault in which round, all from one seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """One round, numbered from 1. What is drawn within it depends on seed and number alone."""

    number: int
    kind: str
    seed: int

    def chance(self) -> random.Random:
        """The round's own source of chance, from its beginning."""
        return random.Random(f"{self.seed}/round/{self.number}")


def rounds(seed: int, count: int, weights: Mapping[str, int]) -> list[Round]:
    """The first `count` rounds under `seed`; more rounds never change those before.

    weights: how often each kind of fault comes up in a pass. A pass is shuffled; every kind comes up once
    before the rest of the pass.
    """
    kinds: list[str] = []
    number = 0
    while len(kinds) < count and weights:
        chance = random.Random(f"{seed}/pass/{number}")
        once, more = sorted(weights), [kind for kind in sorted(weights) for _ in range(weights[kind] - 1)]
        chance.shuffle(once)
        chance.shuffle(more)
        kinds += once + more
        number += 1
    return [Round(place, kind, seed) for place, kind in enumerate(kinds[:count], start=1)]
