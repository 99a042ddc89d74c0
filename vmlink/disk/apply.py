# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole epochs on their way into the images of a backup, in order, off the acknowledgement's path.

    add -> [waiting] -> journal, fdatasync -> images -> now and then: flush, and the journal is emptied

What waits is taken together: behind a slow disk many epochs cost one fdatasync, and what they wrote to the same place
is written once. One worker thread does it all, so that whatever else is asked of the images (`run`) finds every
epoch that was added before.

Invariant (whole epochs only): killed at any moment, the images are one whole epoch after `Images.replay`, and none
older than `durable`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from vmlink import inject
from vmlink.disk import state as st
from vmlink.disk.compare import Answer, Question, answer
from vmlink.disk.images import Images, write_all
from vmlink.disk.journal import Group
from vmlink.disk.offer import Offer
from vmlink.disk.record import WRITE_COST, DiskWrites, Kind, Overlay, Write
from vmlink.disk.state import Point
from vmlink.disk.store import REQUEST, Store
from vmlink.errors import VmError

GROUP = 16 << 20
"""Bytes of epochs that are journaled together; a larger epoch goes alone."""
CHECKPOINT = 32 << 20
"""Bytes in the journal from which on the images are flushed and it is emptied: how much a takeover may find not
flushed."""
COPIED = 32 << 20
"""Bytes of a copy after which they are flushed: what a slow disk has to do at once must not take too long."""
QUIET = 0.1
"""Seconds without an epoch that wrote, after which the images are flushed."""
STALL = 5.0
"""Seconds; see `Applier.room`."""
SMALL = 64 << 10
"""Bytes up to which writes that follow each other are joined into one request."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class _Waiting:
    copy: int
    epoch: int
    writes: DiskWrites
    size: int


class Applier:
    """See the module. `limit`: bytes that may wait before `room` makes the acknowledgements wait. `failed` hears, once
    and in the event loop, why no more can be applied: the replica is not usable then."""

    def __init__(self, images: Images, limit: int, failed: Callable[[Exception], None]) -> None:
        self._images, self._limit, self._failed = images, limit, failed
        self._loop = asyncio.get_running_loop()
        self._worker = ThreadPoolExecutor(1, "disks")
        self._stores: list[Store] = []
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._quiet: asyncio.TimerHandle | None = None
        self._applied = asyncio.Event()
        self._broken = self._closed = self._told = False
        self._copies = self._generation = 0
        self._point: Point | None = None
        self._flushed, self._copied = True, 0
        self.waiting_bytes = 0
        self.durable = 0
        """The last epoch that is on disk here, be it in the journal; 0 as long as the images are no replica."""

    async def open(self, stores: Callable[[], Sequence[Store]]) -> None:
        """Begin with the connected stores that `stores` makes, in the worker: what the journal still holds is applied
        first. Raises VmError."""
        def connect() -> None:
            self._stores.extend(stores())
            self._images.replay(self._stores)

        await self.run(connect)

    async def close(self) -> None:
        """Apply nothing more; what waits is forgotten, a request under way fails. When this returns the images are
        nobody's. Idempotent."""
        self._broken = self._closed = True
        if self._quiet is not None:
            self._quiet.cancel()
        self._applied.set()
        for store in self._stores:
            store.close()
        self._worker.shutdown(wait=False, cancel_futures=True)
        await self._loop.run_in_executor(None, self._worker.shutdown)

    # --- a copy, then epochs ---

    def begin(self, generation: int, since: Point | None, term: int) -> None:
        """A copy begins: nothing that came before counts any more, and that the images are not whole is remembered
        before the first piece is written. `since`: nothing will come of what was not written since this point."""
        def forget() -> None:
            self._generation, self._point = generation, None
            self._images.set(st.copied_over(self._images.state, since, term))

        with self._lock:
            self._waiting.clear()
            self.waiting_bytes, self.durable = 0, 0
            self._copies += 1
        if not self._broken:
            self._worker.submit(self._guarded, forget)

    def copy(self, writes: DiskWrites) -> None:
        """A piece of the copy, straight into the images; its writes do not overlap. The sender bounds what waits: it
        asks (`run`) now and then."""
        if not self._broken:
            self._worker.submit(self._guarded, partial(self._write_copy, writes))

    def add(self, epoch: int, writes: DiskWrites) -> None:
        """A whole epoch, the next one; the first after a copy makes the images whole. Costs no time; applied later."""
        size = sum(len(write.data) for _, write in writes) + WRITE_COST * (len(writes) + 1)
        with self._lock:
            if not writes and not self.waiting_bytes and self.durable:
                self.durable = epoch
                return
            self._waiting.append(_Waiting(self._copies, epoch, writes, size))
            self.waiting_bytes += size
        if not self._broken:
            self._worker.submit(self._guarded, self._apply_all)

    @property
    def has_room(self) -> bool:
        return self.waiting_bytes < self._limit or self._broken

    async def room(self) -> None:
        """Wait until less waits than may. When nothing at all is applied for STALL seconds, that is a failure: the
        primary, which waits for us, is better off alone."""
        while not self.has_room:
            self._applied.clear()
            try:
                async with asyncio.timeout(STALL):
                    await self._applied.wait()
            except TimeoutError:
                self._broken = True
                self._tell_failure(VmError(f"nothing was written to the images for {STALL:g} s",
                                           "the disk below them hangs: see the kernel's log"))

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work` in the worker, after every epoch that was added before. Raises what it raises."""
        if self._broken:
            raise VmError("the disks of the replica cannot be used any more")
        return await self._loop.run_in_executor(self._worker, partial(work, *args, **kwargs))

    async def offered(self) -> Offer:
        """What the images are to a primary that is about to copy its own over them. Raises VmError."""
        return await self.run(self._images.offered)

    async def read(self, disk: int, offset: int, length: int) -> bytearray:
        """What a disk holds, with all that came before. Raises VmError."""
        return await self.run(lambda: self._stores[disk].read(offset, length))

    async def answer(self, question: Question) -> Answer:
        """What the images hold, with all that came before. Raises VmError."""
        if not question.ranges and not question.grain:
            await self.run(self._checkpoint)
        return await self.run(answer, self._stores, question)

    async def settle(self) -> None:
        """Return when everything added is in the images and flushed. Raises VmError."""
        await self.run(self._checkpoint)

    async def take_over(self, term: int) -> Point:
        """Finish everything, and remember that the VM writes to the images from here on. Returns the point that they
        have in common with those of the other host. Raises VmError."""
        def hand() -> Point:
            self._flush()
            state, point = self._images.state, self._point
            if point is not None:
                state = st.made_whole(state, point)
            self._images.set(st.taken_over(state, term))
            assert point is not None
            return point

        return await self.run(hand)

    # --- in the worker ---

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._broken:
            return
        try:
            work()
        except Exception as error:  # whatever it is, the replica is lost with it, and says so
            self._broken = True
            self._loop.call_soon_threadsafe(self._tell_failure, error)

    def _tell_failure(self, error: Exception) -> None:
        self._applied.set()
        if not self._closed and not self._told:
            self._told = True
            self._failed(error)

    def _take(self) -> list[_Waiting]:
        """The epochs that go together: up to GROUP bytes, at least one if there is one."""
        taken: list[_Waiting] = []
        size = 0
        with self._lock:
            while self._waiting and (not taken or size + self._waiting[0].size <= GROUP):
                taken.append(self._waiting.popleft())
                size += taken[-1].size
        return taken

    def _write_copy(self, writes: DiskWrites) -> None:
        self._flushed = False
        write_all(self._stores, writes, look_from=0)
        self._copied += sum(len(write.data) for _, write in writes)
        if self._copied > COPIED:
            self._checkpoint()

    def _apply_all(self) -> None:
        while group := self._take():
            writes = merged(waiting.writes for waiting in group)
            self._apply(Group(group[-1].epoch, writes))
            self._loop.call_soon_threadsafe(self._done, group[-1], sum(waiting.size for waiting in group))

    def _apply(self, group: Group) -> None:
        journal = self._images.journal
        if group.writes:
            self._flushed = False
            if self._point is not None:
                journal.append(group)
                journal.sync()
                inject.point("disk.journaled")
            write_all(self._stores, group.writes, partial(inject.point, "disk.applying"))
            inject.point("disk.applied")
        begins = self._point is None
        self._point = Point(self._generation, group.epoch)
        if begins or journal.used > CHECKPOINT:
            self._checkpoint()

    def _flush(self) -> None:
        if not self._flushed:
            for store in self._stores:
                store.flush()
            self._flushed, self._copied = True, 0
            inject.point("disk.flushed")

    def _checkpoint(self) -> None:
        self._flush()
        if self._point is not None and self._point != self._images.state.point:
            self._images.set(st.made_whole(self._images.state, self._point))

    def _done(self, last: _Waiting, size: int) -> None:
        if last.copy != self._copies:
            return
        with self._lock:
            self.waiting_bytes -= size
        self.durable = last.epoch
        self._applied.set()
        if self._quiet is not None:
            self._quiet.cancel()
        self._quiet = self._loop.call_later(QUIET, self._when_quiet)

    def _when_quiet(self) -> None:
        if not self.waiting_bytes and not self._broken:
            self._worker.submit(self._guarded, self._checkpoint)


def merged(epochs: Iterable[DiskWrites]) -> DiskWrites:
    """What the writes of these epochs leave behind, as writes that do not overlap, by disk and place."""
    disks: dict[int, list[Write]] = {}
    for writes in epochs:
        for disk, write in writes:
            disks.setdefault(disk, []).append(write)
    return [(disk, write) for disk, writes in sorted(disks.items()) for write in _joined(_apart(writes))]


def _apart(writes: list[Write]) -> Iterable[Write]:
    """In ascending order, without overlap; where two overlap the later one counts."""
    offsets = np.array([write.offset for write in writes], np.int64)
    order = np.argsort(offsets, kind="stable")
    ends = offsets + np.array([write.length for write in writes], np.int64)
    if (ends[order][:-1] <= offsets[order][1:]).all():
        return [writes[index] for index in order.tolist()]
    laid = Overlay()
    for write in writes:
        laid.add(write, 0)
    return laid.writes()


def _joined(writes: Iterable[Write]) -> Iterable[Write]:
    """Small writes that follow each other as one, up to REQUEST bytes; zeros that follow each other too."""
    run: list[Write] = []
    for write in writes:
        if run and not _follows(run, write):
            yield _one(run)
            run = []
        run.append(write)
    if run:
        yield _one(run)


def _follows(run: list[Write], write: Write) -> bool:
    last = run[-1]
    if write.offset != last.offset + last.length or (write.kind is Kind.WRITE) is not (last.kind is Kind.WRITE):
        return False
    if write.kind is not Kind.WRITE:
        return True
    return write.length <= SMALL and last.length <= SMALL and write.offset + write.length - run[0].offset <= REQUEST


def _one(run: list[Write]) -> Write:
    if len(run) == 1:
        return run[0]
    length = run[-1].offset + run[-1].length - run[0].offset
    if run[0].kind is Kind.WRITE:
        return Write(Kind.WRITE, run[0].offset, length, b"".join(write.data for write in run))
    return Write(Kind.ZERO, run[0].offset, length)
