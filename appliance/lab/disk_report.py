# SPDX-License-Identifier: GPL-2.0-or-later
"""What a demo found about the disk: the `disk` section of report.json, what was not kept, and the table for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.lab.failover import Measured
from appliance.lab.figures import percentile, rounded
from appliance.lab.ledger import Findings
from appliance.lab.quiet import Quiet
from appliance.lab.soundness import Soundness


@dataclass
class Inspection:
    """One look at the database and its disk. `after`: what had happened. `kernel`: what the guest's kernel says
    of its file system; `quiet`: None where the images were not compared; `bad_checksums`: None where not all was
    read from the disk."""

    after: str
    audit: Findings
    soundness: Soundness
    kernel: tuple[int, str]
    quiet: Quiet | None = None
    bad_checksums: int | None = None
    more: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Everything that is wrong, in words."""
        found = [*self.audit.problems, *self.soundness.problems, *self.more]
        if self.kernel[0]:
            found.append(f"the guest's kernel: {' '.join(self.kernel[1].split())}")
        if self.quiet is not None:
            found += self.quiet.problems
        if self.bad_checksums:
            found.append(f"{self.bad_checksums} pages on the disk are not what their checksum says")
        return [f"after {self.after}: {what}" for what in found]


def section(inspections: Sequence[Inspection]) -> dict[str, Any]:
    """The `disk` section: sums over all inspections, and each with its own figures; times in ms."""
    compared = [one.quiet for one in inspections if one.quiet is not None]
    read = [one.bad_checksums for one in inspections if one.bad_checksums is not None]
    return {
        "transactions": max((one.audit.transactions for one in inspections), default=0),
        "lost_acked_transactions": sum(one.audit.lost for one in inspections),
        "transactions_twice": sum(one.audit.twice for one in inspections),
        "transactions_wrong": sum(one.audit.wrong for one in inspections),
        "amcheck": {"runs": len(inspections), "problems": sum(len(one.soundness.problems) for one in inspections)},
        "bad_checksums": sum(read) if read else None,
        "images": {
            "compared": len(compared),
            "identical": sum(quiet.same_after_ms is not None for quiet in compared),
            "clean_file_systems": sum(quiet.clean for quiet in compared),
        },
        "inspections": [_figures(one) for one in inspections],
    }


def _figures(one: Inspection) -> dict[str, Any]:
    return {
        "after": one.after,
        "transactions": one.audit.transactions,
        "indexes": one.soundness.indexes,
        "tables": one.soundness.tables,
        "identical_after_ms": one.quiet.same_after_ms if one.quiet else None,
        "bad_checksums": one.bad_checksums,
        "problems": one.problems,
    }


def broken_promises(inspections: Sequence[Inspection], expected: int) -> list[str]:
    """Every promise about the disk that was not kept, in words."""
    broken = [problem for one in inspections for problem in one.problems]
    if len(inspections) < expected:
        broken.append(f"the database was looked at {len(inspections)} times, not {expected}")
    if not any(one.audit.transactions for one in inspections):
        broken.append("the database acknowledged nothing")
    if all(one.bad_checksums is None for one in inspections):
        broken.append("the database was never read back from its disk")
    return broken


def table(report: dict[str, Any], failovers: Sequence[Measured]) -> str:
    """The report for people."""
    client, disk, images = report["client"], report["disk"], report["disk"]["images"]
    lines = [f"{'':34}{'p50':>11}{'max':>11}"]
    for title, key in (
        ("longest wait of the open client", "gap_ms"), ("death noticed after", "detect_ms"),
        ("VM speaks again after", "resume_ms"), ("protected again, once back, after", "resync_ms"),
        ("longest wait while that lasted", "resync_stall_ms"),
    ):  # fmt: skip
        values = [value for one in failovers if (value := getattr(one, key)) is not None]
        lines.append(f"{title:34}" + "".join(f"{_ms(percentile(values, share)):>11}" for share in (50, 100)))
    same = [one["identical_after_ms"] for one in disk["inspections"] if one["identical_after_ms"] is not None]
    lines.append(f"{'images equal after the last write':34}"
                 + "".join(f"{_ms(percentile(same, share)):>11}" for share in (50, 100)))  # fmt: skip
    pause = report["checkpoint"]["pause_ms"]
    checksums = "not read" if disk["bad_checksums"] is None else f"{disk['bad_checksums']} bad checksums"
    lines += [
        "",
        f"crashes      {len(failovers)}",
        f"client       {client['requests']} requests, {client['resets']} connections reset",
        f"database     {disk['transactions']} transactions acknowledged, {disk['lost_acked_transactions']} lost, "
        f"{disk['transactions_twice']} twice, {disk['transactions_wrong']} wrong",
        f"             {disk['amcheck']['runs']} times checked by itself, {disk['amcheck']['problems']} problems; "
        f"{checksums}",
        f"redis        {client['lost_acked_writes']} acknowledged writes lost",
        f"images       {images['identical']} of {images['compared']} times identical, "
        f"{images['clean_file_systems']} times a clean file system",
        f"guard        {report['guard']['early_frames']} frames early",
        f"checkpoints  {report['checkpoint']['count']}, pause p50 {_ms(pause['p50'])}, p99 {_ms(pause['p99'])}",
    ]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    value = rounded(value)
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"
