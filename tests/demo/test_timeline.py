# SPDX-License-Identifier: GPL-2.0-or-later
"""The report and the picture, from runs made up by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance.core import Phase
from appliance.lab import report, timeline
from appliance.lab.failover import Failover, measure
from appliance.lab.figures import percentile
from appliance.lab.observer import Seen
from appliance.lab.recording import Broken, Recording, StreamRecord, Verdict

OFFSET = 1_000_000_000_000_000_000  # unix time of monotonic 0, in ns
BEGUN = 100.0  # monotonic seconds
UNIX = OFFSET / 1e9


def unix(second: float) -> float:
    """The unix time of so many seconds after the client began."""
    return UNIX + BEGUN + second


def stream(name: str, every: float, latency_ms: float, until: float) -> StreamRecord:
    count = int(until / every)
    starts = [round((BEGUN + i * every) * 1e9) for i in range(count)]
    return StreamRecord(name, starts, [round(latency_ms * 1e6)] * count)


def recording() -> Recording:
    """Twenty seconds; at second 10 the echo stalls for 120 ms."""
    names = {"echo": 0.01, "incr": 0.02, "set": 0.02, "ping": 0.02, "download": 0.25}
    streams = {name: stream(name, every, 5.0, 20.0) for name, every in names.items()}
    streams["echo"].latency_ns[1000] = 120_000_000
    return Recording("hf-1", OFFSET, streams, Verdict(requests=5000, verified=True))


def status(pid: int, events: list[tuple[float, str]], early: int = 0, checkpoints: int = 0) -> dict[str, Any]:
    told = [{"at": unix(at), "event": name, "was": "x"} for at, name in events]
    return {"pid": pid, "vms": {"web1": {"events": told, "guard": {"early": early}, "checkpoints": checkpoints}}}


def seen(early: int = 0) -> Seen:
    seen = Seen()
    seen.add_status("alpha", status(1, [(-1, "protected")], checkpoints=400))
    seen.add_status("alpha", status(1, [(-1, "protected")], checkpoints=500))
    seen.add_status("beta", status(2, [(-1, "standby"), (10.02, "peer-down"), (10.03, "taking-over"),
                                       (10.05, "gate-open"), (10.05, "solo")], early=early))  # fmt: skip
    seen.add_status("alpha", status(3, [(13, "receiving"), (14, "standby")]))
    seen.add_status("beta", status(2, [(13, "sync-begin"), (13, "syncing"), (14, "protected")], early=early))
    for host, begin in (("alpha", 0), ("beta", 14)):
        records = [{"at": unix(begin + i / 40), "term": 1, "epoch": i, "pause_ms": 3.0 + i % 7, "dirty_pages": 60 + i}
                   for i in range(1, 200)]  # fmt: skip
        seen.add_epochs(host, {"vms": {"web1": records}})
    return seen


CRASH = Failover("crash", "alpha", "beta", unix(9.99), unix(12), unix(14.05))


def test_a_failover_is_measured_from_the_clients_wait_and_the_services_events() -> None:
    measured = measure(CRASH, seen(), recording())
    assert measured.gap_ms == 120.0
    assert measured.detect_ms == pytest.approx(30, abs=0.2)
    assert measured.resume_ms == pytest.approx(60, abs=0.2)
    assert measured.resync_ms == pytest.approx(2000, abs=0.2)
    assert measured.resync_stall_ms == 5.0


def test_the_report_has_the_documented_shape() -> None:
    measured = [measure(CRASH, seen(), recording())]
    spans = seen().protected_spans([CRASH.fault_at], unix(20))
    assert spans == [(unix(-1), CRASH.fault_at), (unix(14), unix(20))]
    document = report.build(measured, seen(), recording(), spans)
    assert document["schema"] == "holdfast.demo/1"
    assert set(document["failovers"][0]) == {"fault", "victim", "gap_ms", "detect_ms", "resume_ms", "resync_ms"}
    assert document["client"] == {"requests": 5000, "resets": 0, "lost_acked_writes": 0, "corrupt_downloads": 0}
    assert document["guard"] == {"early_frames": 0}
    assert document["checkpoint"]["count"] == 500
    assert document["checkpoint"]["pause_ms"] == {"p50": 6.0, "p99": 9.0, "max": 9.0}
    assert document["checkpoint"]["dirty_pages"]["p50"] == 160
    assert document["echo_ms"] == {"p50": 5.0, "p99": 5.0}, "the stall is outside the protected time"
    assert not report.broken_promises(document, recording(), 1)
    assert "120 ms" in report.table(document, measured, recording())


def test_every_broken_promise_is_told() -> None:
    run = recording()
    run.verdict = Verdict(verified=False, problems=["echo: the connection broke"])
    document = report.build([], seen(early=3), run, [])
    broken = report.broken_promises(document, run, 2)
    assert len(broken) == 4
    assert "3 frames reached the guard" in broken[2] and "0 of 2 hosts" in broken[3]


def test_a_broken_connection_stalls_until_the_next_answer() -> None:
    record = StreamRecord("echo", [0, 900], [100, 50], [Broken(300, "reset", "RST")])
    assert record.longest_stall_ms(150, 200) == pytest.approx(850 / 1e6)
    never_again = StreamRecord("echo", [0], [100], [Broken(300, "reset", "RST")])
    assert never_again.longest_stall_ms(150, 2000) == pytest.approx(1900 / 1e6)


def test_a_recording_survives_the_file(tmp_path: Path) -> None:
    run = recording()
    run.streams["echo"].broken.append(Broken(1, "reset", "RST"))
    run.save(tmp_path / "client.json")
    assert Recording.load(tmp_path / "client.json") == run


def test_the_picture_is_drawn_even_from_a_run_cut_short(tmp_path: Path) -> None:
    timeline.draw(tmp_path / "whole.png", recording(), seen(), [CRASH], "whole")
    empty = Recording("hf-1", OFFSET, {"echo": StreamRecord("echo")}, Verdict())
    timeline.draw(tmp_path / "empty.png", empty, Seen(), [], "empty")
    for name in ("whole.png", "empty.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_percentiles_are_samples() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 50) == 2.0
    assert percentile([3.0, 1.0, 2.0, 4.0], 99) == 4.0
    assert percentile([5.0], 1) == 5.0


def test_every_phase_has_a_colour() -> None:
    assert set(timeline.PHASES) == set(Phase)
