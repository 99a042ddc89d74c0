# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign's result: what became of each round, and report.json (schema holdfast.campaign/1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.lab.figures import percentile, rounded

SCHEMA = "holdfast.campaign/1"


@dataclass
class Outcome:
    """One round. `gap_ms`: the longest that the client waited from the fault until all was healed; None if it never
    got that far. `problems`: in words; none if the fault was survived."""

    number: int
    kind: str
    seed: int
    story: list[str] = field(default_factory=list)
    gap_ms: float | None = None
    seconds: float = 0.0
    early_frames: int = 0
    two_speakers: int = 0
    lost_acked_writes: int = 0
    resets: int = 0
    not_reprotected: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def survived(self) -> bool:
        return not self.problems


SUMS = ("early_frames", "two_speakers", "lost_acked_writes", "resets", "not_reprotected")


def build(seed: int, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The document that becomes report.json; gaps in ms, null where none was measured."""
    kinds = sorted({outcome.kind for outcome in outcomes})
    return {
        "schema": SCHEMA,
        "seed": seed,
        "faults": len(outcomes),
        "survived": sum(outcome.survived for outcome in outcomes),
        **{name: sum(getattr(outcome, name) for outcome in outcomes) for name in SUMS},
        "by_fault": {kind: _of([one for one in outcomes if one.kind == kind]) for kind in kinds},
    }


def _of(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    gaps = [outcome.gap_ms for outcome in outcomes if outcome.gap_ms is not None]
    return {
        "count": len(outcomes),
        "gap_ms": {
            "p50": rounded(percentile(gaps, 50), 1),
            "p95": rounded(percentile(gaps, 95), 1),
            "max": rounded(percentile(gaps, 100), 1),
        },
    }


def table(report: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{'fault':40}{'count':>6}{'gap p50':>12}{'p95':>12}{'max':>12}"]
    for kind, found in report["by_fault"].items():
        gap = found["gap_ms"]
        lines.append(f"{kind:40}{found['count']:>6}" + "".join(f"{_ms(gap[key]):>12}" for key in ("p50", "p95", "max")))
    sums = ", ".join(f"{report[name]} {name.replace('_', ' ')}" for name in SUMS)
    lines += ["", f"seed {report['seed']}: {report['survived']} of {report['faults']} faults survived; {sums}"]
    return "\n".join(lines)


def line(outcome: Outcome, count: int) -> str:
    """What is told of a round when it is over."""
    story = "; ".join(outcome.story)
    verdict = "survived" if outcome.survived else f"NOT SURVIVED: {' | '.join(outcome.problems)}"
    return (f"{outcome.number:>4}/{count}  {outcome.seconds:5.1f} s  {outcome.kind}: {story}; "
            f"gap {_ms(outcome.gap_ms)}; {verdict}")  # fmt: skip


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"
