# SPDX-License-Identifier: GPL-2.0-or-later
"""What the parts of the service tell of one VM for whoever traces it. While nobody listens it costs next to nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from appliance.packet import VNET_HEADER
from appliance.trace import notes
from vmlink.checkpoint import Snapshot

MARKS = 256
"""Epochs whose ends are remembered: more than may ever be in flight."""
LEAVING = 16
"""Committed epochs whose frames may not all have left."""
SNAP, COPIES = 128, 1024
"""Bytes of a frame that are told, and frames that are told at once, of those that no packet program saw."""


class Trail:
    """Of one VM on this host. `listeners` hear every note, in the order in which things happened."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self.listeners: list[Callable[[notes.Note], None]] = []
        self._marks: deque[notes.Marked] = deque(maxlen=MARKS)  # of the present protection, oldest first
        self._alone: list[notes.Alone] = []  # the last words on whether the VM runs alone

    def _tell(self, note: notes.Note) -> None:
        for listener in self.listeners:
            listener(note)

    def past(self, acked: int) -> list[notes.Alone | notes.Marked]:
        """What says to which epoch a frame belongs that may still be held, in order: of epochs up to `acked` only the
        last ones, whose frames may be on their way out."""
        marks = [mark for mark in self._marks if mark.epoch > acked - LEAVING]
        return sorted([*self._alone, *marks], key=lambda note: note.at_ns)

    # --- one epoch, in the order of its life ---

    def marked(self, at_ns: int, term: int, epoch: int, number: int) -> None:
        """The VM is paused. `at_ns` (monotonic) is not later than the gate was asked for `number`: no frame beyond it
        is older."""
        self._marks.append(notes.Marked(at_ns=at_ns, vm=self._vm, term=term, epoch=epoch, number=number))
        self._tell(self._marks[-1])

    def taken(self, term: int, epoch: int, snapshot: Snapshot, frames: int) -> None:
        """The VM runs again."""
        if self.listeners:
            steps = snapshot.steps
            self._tell(notes.Taken(at_ns=_ns(snapshot.resumed), vm=self._vm, term=term, epoch=epoch,
                                   stopped_ns=_ns(snapshot.stopped), stop_ns=_ns(steps.stop), save_ns=_ns(steps.save),
                                   resume_ns=_ns(steps.resume), pages=len(snapshot.numbers), bytes=snapshot.size,
                                   frames=frames))

    def sent(self, term: int, epoch: int) -> None:
        """All of the epoch has been handed to the link."""
        if self.listeners:
            self._tell(notes.Sent(at_ns=time.monotonic_ns(), vm=self._vm, term=term, epoch=epoch))

    def acked(self, term: int, epoch: int, now: float) -> None:
        """The backup has said so, at `now` (monotonic seconds)."""
        if self.listeners:
            self._tell(notes.Acked(at_ns=_ns(now), vm=self._vm, term=term, epoch=epoch))

    def released(self, term: int, epoch: int, now: float) -> None:
        """All frames of the epoch are out."""
        if self.listeners:
            self._tell(notes.Released(at_ns=_ns(now), vm=self._vm, term=term, epoch=epoch))

    def committed(self, term: int, epoch: int) -> None:
        """On the backup: the epoch is whole."""
        if self.listeners:
            self._tell(notes.Committed(at_ns=time.monotonic_ns(), vm=self._vm, term=term, epoch=epoch))

    # --- frames ---

    def runs_alone(self, alone: bool, number: int) -> None:
        """From the frame after `number` on frames go out as they come; or no longer."""
        note = notes.Alone(at_ns=time.monotonic_ns(), vm=self._vm, alone=alone, number=number)
        if not alone:
            self.ends()
        self._alone.append(note)
        self._tell(note)

    def ends(self) -> None:
        """What was protected is no more; or the VM does not run here any more."""
        self._alone.clear()
        self._marks.clear()

    def dropped(self, first: int, last: int, cause: str) -> None:
        """What was held of the frames from number `first` to `last` was thrown away."""
        if self.listeners and last >= first:
            self._tell(notes.Dropped(at_ns=time.monotonic_ns(), vm=self._vm, first=first, last=last, cause=cause))

    def sends_itself(self, since_ns: int, frames: int, point: str, over: bool) -> None:
        """Since `since_ns` (monotonic) this host writes frames to the out tap, and nobody else does; or it has."""
        if self.listeners:
            self._tell(notes.Again(at_ns=since_ns, until_ns=time.monotonic_ns() if over else 0, vm=self._vm,
                                   frames=frames, point=point))

    def copies(self, point: str, cause: str, frames: list[bytes], term: int = 0, epoch: int = 0) -> None:
        """Frames (behind a 10-byte virtio header) that no packet program saw."""
        if self.listeners and frames:
            told = [notes.Copied(len(frame) - VNET_HEADER, frame[VNET_HEADER:VNET_HEADER + SNAP])
                    for frame in frames[:COPIES]]
            self._tell(notes.Copies(at_ns=time.monotonic_ns(), vm=self._vm, point=point, cause=cause, frames=told,
                                    term=term, epoch=epoch))

    # --- everything else ---

    def happened(self, event: str, fields: dict[str, Any]) -> None:
        """An event of the VM's journal."""
        if self.listeners:
            self._tell(notes.Happened(at_ns=time.monotonic_ns(), vm=self._vm, event=event, fields=fields))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
