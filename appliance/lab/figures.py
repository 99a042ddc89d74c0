# SPDX-License-Identifier: GPL-2.0-or-later
"""Percentiles: how the demo and the benches turn samples into figures."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(samples: Sequence[float], percent: float) -> float:
    """The smallest sample that at least `percent` % of all samples do not exceed (nearest rank).

    Never interpolates, so that the figure is a value that was really measured. NaN without samples.
    """
    if not samples:
        return math.nan
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0) - 1)]


def rounded(value: float | None, digits: int = 3) -> float | None:
    """`value` for a report: rounded, and None (JSON null) where nothing was measured."""
    return None if value is None or math.isnan(value) else round(value, digits)
