# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's judgement: report.json (schema holdfast.demo/1), the table for people, and what was not kept."""

from __future__ import annotations

from typing import Any

from appliance.lab.failover import Measured
from appliance.lab.figures import percentile, rounded
from appliance.lab.observer import Seen
from appliance.lab.recording import Recording

SCHEMA = "holdfast.demo/1"


def build(
    failovers: list[Measured], seen: Seen, recording: Recording, protected: list[tuple[float, float]]
) -> dict[str, Any]:
    """The document that becomes report.json; times in ms, null where nothing was measured.

    protected: when the VM was protected, in unix seconds. Echo latencies are those of that time: without a
    backup nothing is held, and the figures would flatter.
    """
    epochs = list(seen.epochs.values())
    pauses = [epoch.pause_ms for epoch in epochs]
    moment, stream = recording.monotonic_ns, recording.streams["echo"]
    echo = [ms for span in protected for ms in stream.latencies_ms(*map(moment, span))]
    verdict = recording.verdict
    return {
        "schema": SCHEMA,
        "failovers": [failover.for_report() for failover in failovers],
        "client": {
            "requests": verdict.requests,
            "resets": verdict.resets,
            "lost_acked_writes": verdict.lost_acked_writes,
            "corrupt_downloads": verdict.corrupt_downloads,
        },
        "guard": {"early_frames": seen.early_frames()},
        "checkpoint": {
            "count": sum(seen.checkpoints.values()),
            "pause_ms": {
                "p50": rounded(percentile(pauses, 50)),
                "p99": rounded(percentile(pauses, 99)),
                "max": rounded(max(pauses, default=float("nan"))),
            },
            "dirty_pages": {"p50": rounded(percentile([epoch.pages for epoch in epochs], 50))},
        },
        "echo_ms": {"p50": rounded(percentile(echo, 50)), "p99": rounded(percentile(echo, 99))},
    }


def broken_promises(report: dict[str, Any], recording: Recording, expected_failovers: int) -> list[str]:
    """Every promise that was not kept, in words; none for a run as it should be."""
    broken = list(recording.verdict.problems)
    if not recording.verdict.verified:
        broken.append("what the client wrote was not read back")
    if early := report["guard"]["early_frames"]:
        broken.append(f"{early} frames reached the guard before their epoch was committed")
    done = [failover["victim"] for failover in report["failovers"]]
    if len(done) < expected_failovers:
        broken.append(f"only {len(done)} of {expected_failovers} hosts failed and returned")
    if report["checkpoint"]["count"] == 0:
        broken.append("no checkpoint was seen")
    return broken


def table(report: dict[str, Any], failovers: list[Measured], recording: Recording) -> str:
    """The same for people, from the same figures."""
    client, checkpoint, echo = report["client"], report["checkpoint"], report["echo_ms"]
    heads = [f"{failover.fault} of {failover.victim}" for failover in failovers]
    lines = [f"{'':34}" + "".join(f"{head:>17}" for head in heads)]

    def row(title: str, *values: float | None) -> None:
        lines.append(f"{title:34}" + "".join(f"{_ms(value):>17}" for value in values))

    row("longest wait of the open client", *(one.gap_ms for one in failovers))
    row("death noticed after", *(one.detect_ms for one in failovers))
    row("VM speaks again after", *(one.resume_ms for one in failovers))
    row("protected again, once back, after", *(one.resync_ms for one in failovers))
    row("longest wait while that lasted", *(one.resync_stall_ms for one in failovers))
    pause = checkpoint["pause_ms"]
    writes = recording.verdict.acked_writes
    lines += [
        "",
        f"client       {client['requests']} requests, {client['resets']} connections reset, "
        f"{client['corrupt_downloads']} corrupt downloads",
        f"writes       {writes} acknowledged, {client['lost_acked_writes']} lost",
        f"guard        {report['guard']['early_frames']} frames early",
        f"checkpoints  {checkpoint['count']}, pause p50 {_ms(pause['p50'])}, p99 {_ms(pause['p99'])}, "
        f"max {_ms(pause['max'])}; {checkpoint['dirty_pages']['p50'] or 0:g} dirty pages (p50)",
        f"echo         p50 {_ms(echo['p50'])}, p99 {_ms(echo['p99'])} while protected, all streams at once",
    ]
    return "\n".join(lines)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"
