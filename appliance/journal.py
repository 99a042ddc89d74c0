# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened to one VM lately, in memory and bounded: events, and one record per epoch."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from vmlink.checkpoint import Snapshot

log = logging.getLogger("holdfast.vm")

EVENTS = 50
EPOCHS = 4096
SUMMARY = 512


@dataclass
class EpochRecord:
    """One epoch; times are monotonic seconds, 0 for what has not happened yet."""

    term: int
    epoch: int
    stopped_at: float
    pause: float
    stop: float
    save: float
    resume: float
    pages: int
    bytes: int
    acked_at: float = 0.0


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lie; 0 for none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Journal:
    """Of one VM on this host."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.epochs: deque[EpochRecord] = deque(maxlen=EPOCHS)
        self.checkpoints = 0

    def event(self, name: str, **fields: Any) -> None:
        """Note what happened now."""
        self.events.append({"at": time.time(), "event": name, **fields})
        log.info("%s: %s %s", self._vm, name, " ".join(f"{key}={value}" for key, value in fields.items()))

    def epoch(self, term: int, epoch: int, snapshot: Snapshot) -> EpochRecord:
        """Note a checkpoint that was taken; the record is completed as the epoch goes on."""
        steps = snapshot.steps
        record = EpochRecord(term, epoch, snapshot.stopped, steps.pause, steps.stop, steps.save, steps.resume,
                             len(snapshot.numbers), snapshot.size)
        self.epochs.append(record)
        self.checkpoints += 1
        return record

    def summary(self) -> dict[str, Any]:
        """Pauses and dirty pages of the last epochs, for the status: few enough not to hold up the event loop."""
        latest = list(itertools.islice(reversed(self.epochs), SUMMARY))
        pauses = sorted(record.pause * 1e3 for record in latest)
        commits = sorted((r.acked_at - r.stopped_at) * 1e3 for r in latest if r.acked_at)
        pages = [record.pages for record in latest]
        return {
            "checkpoints": self.checkpoints,
            "pause_ms": {"last": round(self.epochs[-1].pause * 1e3, 3) if self.epochs else 0.0,
                         "p50": round(quantile(pauses, 0.5), 3), "p99": round(quantile(pauses, 0.99), 3),
                         "max": round(pauses[-1] if pauses else 0.0, 3)},
            "commit_ms": {"p50": round(quantile(commits, 0.5), 3), "p99": round(quantile(commits, 0.99), 3)},
            "dirty_pages": {"last": pages[0] if pages else 0, "max": max(pages, default=0),
                            "p50": int(statistics.median(pages)) if pages else 0},
        }

    def records(self) -> list[dict[str, Any]]:
        """Every epoch remembered, times as UNIX seconds, for the verb `epochs`."""
        offset = time.time() - time.monotonic()
        return [{"term": r.term, "epoch": r.epoch, "at": r.stopped_at + offset, "pause_ms": r.pause * 1e3,
                 "stop_ms": r.stop * 1e3, "save_ms": r.save * 1e3, "resume_ms": r.resume * 1e3,
                 "dirty_pages": r.pages, "bytes": r.bytes,
                 "acked_at": r.acked_at + offset if r.acked_at else None} for r in self.epochs]
