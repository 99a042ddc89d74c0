# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened to one VM lately, in memory and bounded: events, one record per epoch, and what these add up to."""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from appliance.events import Events
from appliance.sums import Sums
from appliance.trace.trail import Trail
from vmlink.checkpoint import Snapshot

log = logging.getLogger("holdfast.vm")

EVENTS = 50
WORRYING = frozenset({"asking", "failed", "fenced", "peer-down", "qemu-died", "refused", "replication-failed",
                      "takeover-begin", "volume-failed"})
"""Events and phases that are a warning in the log."""
EPOCHS = 4096
SUMMARY = 512


@dataclass
class EpochRecord:
    """One epoch. Durations in seconds; moments in monotonic seconds, 0 for what has not happened yet."""

    term: int
    epoch: int
    stopped_at: float
    pause: float
    stop: float
    save: float
    resume: float
    pages: int
    bytes: int
    frames: int = 0
    """That the VM sent in this epoch, and the gate holds until it is released."""
    output_at: float = 0.0
    """The first of them was there by then."""
    sent_at: float = 0.0
    """All of the epoch had been handed to the link."""
    acked_at: float = 0.0
    released_at: float = 0.0


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lie; 0 for none."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Journal:
    """Of one VM on this host."""

    def __init__(self, vm: str, events: Events | None = None) -> None:
        self._vm, self._told = vm, events or Events()
        self.events: deque[dict[str, Any]] = deque(maxlen=EVENTS)
        self.epochs: deque[EpochRecord] = deque(maxlen=EPOCHS)
        self._held: deque[EpochRecord] = deque(maxlen=EPOCHS)  # not released yet, oldest first
        self._sent = 0  # frames, when the last epoch ended
        self._mute = False
        self.sums = Sums()
        self.trail = Trail(vm)
        """Tells whoever traces the VM."""

    def event(self, name: str, **fields: Any) -> None:
        """Note what happened now, and tell it."""
        self.events.append(self._told.tell(name, self._vm, **fields))
        self.trail.happened(name, fields)
        log.log(logging.WARNING if name in WORRYING else logging.INFO, "%s: %s %s", self._vm, name,
                " ".join(f"{key}={value}" for key, value in fields.items()))

    def phase(self, phase: str, was: str, reason: str, cause: str, **fields: Any) -> None:
        """The VM is in another phase now."""
        self.events.append(self._told.tell(phase, self._vm, was=was, reason=reason, cause=cause, **fields))
        self.trail.happened(phase, {"was": was, "reason": reason, **fields})
        log.log(logging.WARNING if phase in WORRYING else logging.INFO, "%s: %s -> %s: %s%s", self._vm, was, phase,
                reason, f"; because: {cause}" if cause != reason else "")

    # --- what goes out ---

    def speaks(self) -> None:
        """From now on this host speaks alone: the first frame that goes out is an event."""
        self._mute = True

    def out(self, cause: str, frames: int) -> None:
        """So many frames of the VM have left, because of `cause` (see `Sums.released`)."""
        self.sums.released[cause] += frames
        if frames and self._mute:
            self._mute = False
            self.event("first-frame", frames=frames, cause=cause)

    # --- epochs that this host takes ---

    def epoch(self, term: int, epoch: int, snapshot: Snapshot, sent: int = 0, output_at: float = 0.0) -> EpochRecord:
        """Note a checkpoint that was taken; the record is completed as the epoch goes on. `sent`: the number of the
        last frame in it, of all that the VM ever sent here; `output_at`: see EpochRecord."""
        steps = snapshot.steps
        frames = max(0, sent - self._sent) if epoch > 1 else 0  # what went out before the first was never held
        record = EpochRecord(term, epoch, snapshot.stopped, steps.pause, steps.stop, steps.save, steps.resume,
                             len(snapshot.numbers), snapshot.size, frames, output_at or snapshot.stopped)
        if epoch == 1:
            self._held.clear()  # of a copy that is over
        self._sent = sent
        self.epochs.append(record)
        self._held.append(record)
        self.sums.taken(record)
        self.trail.taken(term, epoch, snapshot, frames)
        return record

    def sent(self, record: EpochRecord) -> None:
        """All of it has been handed to the link; the first time counts."""
        if not record.sent_at:
            record.sent_at = time.monotonic()
            self.trail.sent(record.term, record.epoch)

    def acked(self, record: EpochRecord, now: float) -> None:
        """The backup has all of it."""
        record.acked_at = now
        self.trail.acked(record.term, record.epoch, now)
        self.sums.acked(record)

    def released(self, epoch: int, now: float) -> None:
        """All that was held up to the end of `epoch` is out."""
        while self._held and self._held[0].epoch <= epoch:
            record = self._held.popleft()
            record.released_at = now
            self.sums.freed(record)
            self.trail.released(record.term, record.epoch, now)

    def summary(self) -> dict[str, Any]:
        """Pauses, holds and dirty pages of the last epochs, for the status: few enough not to hold up the event loop.
        """
        latest = list(itertools.islice(reversed(self.epochs), SUMMARY))
        pauses = sorted(record.pause * 1e3 for record in latest)
        commits = sorted((r.acked_at - r.stopped_at) * 1e3 for r in latest if r.acked_at)
        holds = sorted((r.released_at - r.output_at) * 1e3 for r in latest if r.frames and r.released_at)
        pages = [record.pages for record in latest]
        return {
            "checkpoints": self.sums.epochs["taken"],
            "pause_ms": {"last": round(self.epochs[-1].pause * 1e3, 3) if self.epochs else 0.0,
                         "p50": round(quantile(pauses, 0.5), 3), "p99": round(quantile(pauses, 0.99), 3),
                         "max": round(pauses[-1] if pauses else 0.0, 3)},
            "commit_ms": {"p50": round(quantile(commits, 0.5), 3), "p99": round(quantile(commits, 0.99), 3)},
            "hold_ms": {"p50": round(quantile(holds, 0.5), 3), "p99": round(quantile(holds, 0.99), 3),
                        "max": round(holds[-1] if holds else 0.0, 3)},
            "dirty_pages": {"last": pages[0] if pages else 0, "max": max(pages, default=0),
                            "p50": int(statistics.median(pages)) if pages else 0},
        }

    def records(self) -> list[dict[str, Any]]:
        """Every epoch remembered, times as UNIX seconds, for the verb `epochs`."""
        offset = time.time() - time.monotonic()
        return [{"term": r.term, "epoch": r.epoch, "at": r.stopped_at + offset, "pause_ms": r.pause * 1e3,
                 "stop_ms": r.stop * 1e3, "save_ms": r.save * 1e3, "resume_ms": r.resume * 1e3,
                 "dirty_pages": r.pages, "bytes": r.bytes, "frames": r.frames,
                 **{name: moment + offset if (moment := getattr(r, name)) else None
                    for name in ("output_at", "sent_at", "acked_at", "released_at")}} for r in self.epochs]
