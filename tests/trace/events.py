# SPDX-License-Identifier: GPL-2.0-or-later
"""A gate, its epochs and whoever traces them, in a few lines: what is true of each frame is known, and what is told of
it comes as records and notes."""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.trace import notes
from ebpf.trace import RECORD, VERSION, Point

VM, HOST, OFFSET = "web1", "alpha", 1_700_000_000_000_000_000
FRAME = bytes.fromhex("525400aa0001525400aa001088b5") + bytes(46)


def record(point: Point, at: int, number: int = 0, *, boundary: int = 0, held: int = 0, term: int = 0, lost: int = 0,
           tag: tuple[int, int] = (0, 0), frame: bytes = FRAME, source: int = 0) -> bytes:
    """As the packet programs make it."""
    return RECORD.pack(VERSION, point, source, len(frame), 0, len(frame), *tag, at, number, boundary, held, term,
                       lost) + frame


def begin(*, past: list[notes.Alone | notes.Marked] | None = None, acked: int = 0, term: int = 1, whole: int = 0,
          host: str = HOST, boot: str = "one") -> notes.Begin:
    vm = notes.VmBegin(vm=VM, source=0, mac="52:54:00:aa:00:10", ips=[], term=term, phase="protected", past=past or [],
                       issued=0, acked=acked, whole=whole)
    return notes.Begin(schema="holdfast.trace/1", host=host, peer="beta", boot=boot, netns=1, ring=1, monotonic_ns=1000,
                       unix_ns=1000 + OFFSET, vms=[vm])


def batch(at: int, *said: notes.Note, lost_frames: int = 0) -> notes.Batch:
    return notes.Batch(at_ns=at, notes=list(said), lost_frames=lost_frames, lost_notes=0)


def alone(at: int, number: int, is_alone: bool = True) -> notes.Alone:
    return notes.Alone(at_ns=at, vm=VM, alone=is_alone, number=number)


def marked(at: int, epoch: int, number: int, term: int = 1) -> notes.Marked:
    return notes.Marked(at_ns=at, vm=VM, term=term, epoch=epoch, number=number)


def sent(at: int, epoch: int, term: int = 1) -> notes.Sent:
    return notes.Sent(at_ns=at, vm=VM, term=term, epoch=epoch)


def acked(at: int, epoch: int, term: int = 1) -> notes.Acked:
    return notes.Acked(at_ns=at, vm=VM, term=term, epoch=epoch)


def released(at: int, epoch: int, term: int = 1) -> notes.Released:
    return notes.Released(at_ns=at, vm=VM, term=term, epoch=epoch)


@dataclass
class Gate:
    """Frames and epochs as they come about; `truth` has the term, epoch and place in it of each frame."""

    now: int = 1000
    issued: int = 0
    freed: int = 0
    epoch: int = 0
    is_alone: bool = True
    term: int = 1
    marks: list[int] = field(default_factory=list)
    start: int = 0
    committed: int = 0
    truth: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    told: list[tuple[int, bytes | notes.Note]] = field(default_factory=list)

    def tick(self) -> int:
        self.now += 10
        return self.now

    def tell(self, thing: bytes | notes.Note) -> None:
        self.told.append((self.now, thing))

    def send(self) -> None:
        self.issued += 1
        place = (self.term, 0, self.issued) if self.is_alone else (self.term, self.epoch + 1, self.issued - self.start)
        self.truth[self.issued] = place
        self.tell(record(Point.HELD, self.tick(), self.issued, boundary=self.freed))

    def protect(self) -> None:
        """Hold from now on; what is in the hold leaves with the first epoch."""
        self.is_alone, self.epoch, self.start, self.marks, self.committed = False, 0, self.issued, [], 0
        self.tell(alone(self.tick(), self.issued, False))

    def mark(self) -> None:
        self.epoch += 1
        self.start = self.issued
        self.marks.append(self.issued)
        self.tell(marked(self.tick(), self.epoch, self.issued, self.term))

    def commit(self) -> None:
        self.committed += 1
        epoch = self.committed
        self.tell(acked(self.tick(), epoch, self.term))
        self.free(self.marks[epoch - 1])
        self.tell(released(self.tick(), epoch, self.term))

    def free(self, number: int) -> None:
        for one in range(self.freed + 1, number + 1):
            self.tell(record(Point.RELEASED, self.tick(), one, boundary=number, term=self.term))
        self.freed = max(self.freed, number)

    def go_alone(self) -> None:
        self.is_alone = True
        self.tell(alone(self.tick(), self.issued))
        self.free(self.issued)
