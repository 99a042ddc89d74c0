# SPDX-License-Identifier: GPL-2.0-or-later
"""A live trace: the service switches it on and tells of epochs, the kernel's ring has the frames; both are joined here.

The ring is read in this process, and at a low priority: whoever traces may lose events, but never slows the VM.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from appliance.errors import BadData, HoldfastError, Unreachable
from appliance.trace import notes
from appliance.trace.event import Event, Point
from appliance.trace.journey import Journey
from appliance.trace.kernel import Kernel
from ebpf.trace import Ring

NICE = 10
PATIENCE = 0.05
"""Seconds between two looks at the ring while the service says nothing."""
GATHER = 0.02
"""Seconds in which what is said and captured gathers, so that it is looked at together."""
QUEUE = 65_536
"""Notes that may wait here while nobody takes what is shown (a pager that stands still)."""
SILENCE_NS = 1_000_000_000
"""After so long a silence of the service frames are shown by what is known: it may stand still, and that is what one
traces for."""
_SAID: msgspec.json.Decoder[notes.Batch] = msgspec.json.Decoder(notes.Batch)

Stream = Callable[..., Iterator[dict[str, Any]]]


class Session:
    """One trace. `stream` opens the service's verb; `words` are what it is asked for (`tracing.Request`); at points
    that are `shown` there are events. `kernel`: what the kernel itself drops is one of them.

    Raises HoldfastError or BpfError when it cannot begin. Use it as a context.
    """

    def __init__(self, stream: Stream, shown: frozenset[Point] = frozenset(Point), *, kernel: bool = False,
                 **words: Any) -> None:
        self._told: queue.Queue[notes.Batch | BaseException | None] = queue.Queue(QUEUE)
        self._unheard = 0  # notes that found it full: nobody takes what is shown
        self._stopping = threading.Event()
        items = stream(**words)
        try:
            self.begin = msgspec.convert(next(items), notes.Begin)
        except StopIteration:
            raise BadData("the service ended the trace before it began", "see its log") from None
        except msgspec.ValidationError as error:
            raise BadData(f"the service's trace makes no sense: {error}", "use the command of its version") from None
        self.journey = Journey(self.begin, shown)
        self._undo = contextlib.ExitStack()
        self._undo.callback(_close, items)
        self._ring: Ring | None = None
        self._kernel: Kernel | None = None
        try:
            if self.begin.ring:
                self._ring = Ring.open(self.begin.ring)
                self._undo.callback(self._ring.close)
            if kernel:
                self._kernel = Kernel(self.begin)
                self._undo.callback(self._kernel.close)
        except BaseException:
            self._undo.close()
            raise
        self.ended = ""
        """Why the service says nothing more; empty while it does."""
        self._thread = threading.Thread(target=self._listen, args=(items,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Session:
        self._thread_id = threading.get_native_id()
        self._nice = os.getpriority(os.PRIO_PROCESS, self._thread_id)
        self._set_priority(max(NICE, self._nice))
        return self

    def _set_priority(self, nice: int) -> None:
        with contextlib.suppress(OSError):  # of this thread alone
            os.setpriority(os.PRIO_PROCESS, self._thread_id, nice)

    def __exit__(self, *_: object) -> None:
        self._set_priority(self._nice)
        self._stopping.set()
        self._thread.join(2.0)
        self._undo.close()

    def _listen(self, items: Iterator[dict[str, Any]]) -> None:
        """In a thread of its own: what the service says, until it ends or this session does."""
        end: BaseException | None = None
        try:
            for item in items:
                if self._stopping.is_set():
                    break
                self._tell(msgspec.convert(item, notes.Batch))
        except (HoldfastError, msgspec.ValidationError, OSError) as error:
            end = error
        finally:
            self._told.put(end)

    def _tell(self, batch: notes.Batch) -> None:
        """What nobody takes is lost: this end must go on reading, or the service would have to wait or cut it off."""
        if self._unheard:
            batch = msgspec.structs.replace(batch, lost_notes=batch.lost_notes + self._unheard)
        try:
            self._told.put_nowait(batch)
        except queue.Full:
            self._unheard += len(batch.notes)

    def events(self, until: float | None = None) -> Iterator[list[Event]]:
        """Settled events, in the order of time, some at a time (or none), until the monotonic moment `until`. When the
        service ends first: the rest, by what it said last, and `ended` says why."""
        heard = time.monotonic_ns()
        while until is None or time.monotonic() < until:
            said = self._said()
            if said:
                heard = time.monotonic_ns()
            for one in said:
                if not isinstance(one, notes.Batch):
                    gone = one is None or isinstance(one, Unreachable)
                    self.ended = "the service has ended" if gone else str(one)
                    yield self.journey.finish(self._records())
                    return
                self.journey.hear(one)
            silent = time.monotonic_ns() - SILENCE_NS
            yield self.journey.events(self._records(), silent if heard < silent else 0)

    def _said(self) -> list[notes.Batch | BaseException | None]:
        """What the service has said since the last call; after some patience nothing."""
        said: list[notes.Batch | BaseException | None] = []
        with contextlib.suppress(queue.Empty):
            said.append(self._told.get(timeout=PATIENCE))
            time.sleep(GATHER)
            while True:
                said.append(self._told.get_nowait())
        return said

    def _records(self) -> list[bytes]:
        if self._kernel is not None:
            for at_ns, event in self._kernel.events():
                self.journey.add(at_ns, event)
        return self._ring.read() if self._ring is not None else []


def _close(items: Iterator[dict[str, Any]]) -> None:
    """End the stream. One that stands still, with its service, ends with this process at the latest."""
    with contextlib.suppress(ValueError):
        items.close()  # type: ignore[attr-defined]
