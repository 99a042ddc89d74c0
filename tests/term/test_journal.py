# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM's journal remembers, and what it makes of it for the status."""

from __future__ import annotations

import logging
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.journal import EPOCHS, EVENTS, Journal, quantile
from vmlink.checkpoint import Snapshot, Steps
from vmlink.wire import PAGE


def snapshot(pages: int, pause: float = 0.004, stopped: float | None = None) -> Snapshot:
    begun = time.monotonic() if stopped is None else stopped
    return Snapshot(np.arange(pages, dtype=np.int64), np.zeros((pages, PAGE), np.uint8), bytes(100), begun,
                    begun + pause, Steps(pause / 4, pause / 2, pause / 4))


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values(values: list[float], share: float) -> None:
    values.sort()
    found = quantile(values, share)
    assert found in values
    assert sum(value < found for value in values) <= share * len(values)


def test_quantiles() -> None:
    assert quantile([], 0.5) == 0.0
    values = [float(value) for value in range(100)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50.0, 99.0, 99.0)


def test_an_empty_journal_has_figures_too() -> None:
    summary = Journal("web1").summary()
    assert summary["checkpoints"] == 0
    assert summary["pause_ms"] == {"last": 0.0, "p50": 0.0, "p99": 0.0, "max": 0.0}
    assert summary["commit_ms"] == {"p50": 0.0, "p99": 0.0}
    assert summary["dirty_pages"] == {"last": 0, "max": 0, "p50": 0}
    assert Journal("web1").records() == []


def test_events_are_dated_logged_and_bounded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "holdfast.vm")
    journal, before = Journal("web1"), time.time()
    for number in range(EVENTS + 10):
        journal.event("takeover-begin", term=number, epoch=7)
    assert len(journal.events) == EVENTS
    last = journal.events[-1]
    assert (last["event"], last["term"], last["epoch"]) == ("takeover-begin", EVENTS + 9, 7)
    assert before <= last["at"] <= time.time()
    assert f"web1: takeover-begin term={EVENTS + 9} epoch=7" in caplog.messages


def test_epochs_are_recorded_completed_and_bounded() -> None:
    journal = Journal("web1")
    for number in range(1, EPOCHS + 11):
        record = journal.epoch(3, number, snapshot(number % 50))
        if number % 2:
            record.acked_at = record.stopped_at + 0.010
    assert journal.sums.epochs["taken"] == EPOCHS + 10 and len(journal.epochs) == EPOCHS
    summary = journal.summary()
    assert summary["pause_ms"]["last"] == summary["pause_ms"]["max"] == pytest.approx(4.0, abs=0.01)
    assert summary["commit_ms"]["p50"] == pytest.approx(10.0, abs=0.01)
    assert summary["dirty_pages"] == {"last": (EPOCHS + 10) % 50, "max": 49, "p50": 24}


def test_records_tell_the_time_of_day() -> None:
    journal = Journal("web1")
    stopped = time.monotonic()
    journal.epoch(3, 1, snapshot(2, stopped=stopped)).acked_at = stopped + 0.5
    journal.epoch(3, 2, snapshot(0))
    first, second = journal.records()
    assert first["at"] == pytest.approx(time.time(), abs=5)
    assert first["acked_at"] - first["at"] == pytest.approx(0.5, abs=1e-3)
    assert (first["term"], first["epoch"], first["dirty_pages"], first["bytes"]) == (3, 1, 2, 2 * (PAGE + 8) + 100)
    assert first["pause_ms"] == pytest.approx(first["stop_ms"] + first["save_ms"] + first["resume_ms"])
    assert second["acked_at"] is None
