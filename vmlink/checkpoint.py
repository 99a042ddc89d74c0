# SPDX-License-Identifier: GPL-2.0-or-later
"""One checkpoint of a running VM: pause, take what changed, resume. And the rounds of a first copy.

The VM runs on before anything is sent: what `take` returns is a private copy.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vmlink import inject, priority
from vmlink.disk.record import Record, encode_writes
from vmlink.wire import (
    CHUNK_PAGES,
    MAX_PAYLOAD,
    Buffer,
    Commit,
    Message,
    PageData,
    PageNumbers,
    Type,
    encode_numbers,
    encode_pages,
)

SCAN_TIMEOUT = 5.0
"""Seconds; a scan and copy that takes longer means a host in deep trouble."""


class Vm(Protocol):
    """What a checkpoint needs of a running QEMU."""

    async def stop(self) -> None: ...
    async def cont(self) -> None: ...
    async def save_devices(self) -> Buffer: ...


class DirtyTracker(Protocol):
    """What a checkpoint needs of a tracker."""

    def arm(self) -> None: ...
    def collect(self) -> PageNumbers: ...


@dataclass(frozen=True)
class Steps:
    """Seconds spent in each step of the pause."""

    stop: float
    save: float
    resume: float

    @property
    def pause(self) -> float:
        return self.stop + self.save + self.resume


@dataclass(frozen=True)
class Snapshot:
    """What an epoch changed: page numbers (int64, n), their contents (uint8, n x 4096), the device state."""

    numbers: PageNumbers
    data: PageData
    device: bytes
    stopped: float
    resumed: float
    steps: Steps

    @property
    def size(self) -> int:
        return self.data.nbytes + self.numbers.nbytes + len(self.device)


class Checkpointer:
    """Takes checkpoints of one VM. Owns one worker thread for scan and copy.

    `pages` is what the tracker compares or watches, its `source`: contents are read from nowhere else.
    """

    def __init__(self, vm: Vm, tracker: DirtyTracker, pages: PageData) -> None:
        self._vm, self._tracker, self._ram = vm, tracker, pages
        self._worker = ThreadPoolExecutor(1, "copy", initializer=priority.lead)

    def close(self) -> None:
        self._worker.shutdown(wait=False, cancel_futures=True)

    def _collect(self) -> tuple[PageNumbers, PageData]:
        numbers = self._tracker.collect()
        return numbers, self._ram[numbers]

    async def take(self, at_stop: Callable[[], None], *, resume: bool = True) -> Snapshot:
        """Pause, copy, resume (or not). `at_stop` is called once while nothing moves: it marks the output.

        Raises VmError when QEMU fails, TimeoutError after SCAN_TIMEOUT; the VM may then be paused or dead, its
        output stays held.
        """
        loop = asyncio.get_running_loop()
        begun = time.monotonic()
        await self._vm.stop()
        stopped = time.monotonic()
        at_stop()
        inject.point("checkpoint.stopped")
        saving = asyncio.ensure_future(self._vm.save_devices())
        copying = loop.run_in_executor(self._worker, self._collect)
        try:
            async with asyncio.timeout(SCAN_TIMEOUT):
                await asyncio.gather(saving, copying)
        except TimeoutError:
            raise TimeoutError(f"pages and device state were not taken within {SCAN_TIMEOUT:g} s") from None
        device = bytes(saving.result())
        numbers, data = copying.result()
        inject.point("checkpoint.saved")
        saved = time.monotonic()
        if resume:
            await self._vm.cont()
        resumed = time.monotonic()
        inject.point("checkpoint.resumed")
        return Snapshot(numbers, data, device, begun, resumed,
                        Steps(stopped - begun, saved - stopped, resumed - saved))

    async def rounds(self, limit_rounds: int = 12, last_pages: int = 2048, *,
                     again: bool = False) -> AsyncIterator[Round]:
        """Copy all RAM while the VM runs, then again what it dirtied meanwhile, until little is left. `again`: only the
        latter, after a copy of all.

        Each item is one piece of at most CHUNK_PAGES pages. The consumer sets the pace by asking for the next.
        Ends when a scan finds at most `last_pages` dirty pages, or after `limit_rounds`; what the last scan
        found is yielded too, the pause takes the rest.
        """
        loop = asyncio.get_running_loop()
        if again:
            numbers = await loop.run_in_executor(self._worker, self._tracker.collect)
        else:
            await loop.run_in_executor(self._worker, self._tracker.arm)
            numbers = np.arange(len(self._ram), dtype=np.int64)
        for number in range(limit_rounds):
            for at in range(0, len(numbers), CHUNK_PAGES):
                piece = numbers[at:at + CHUNK_PAGES]
                data = await loop.run_in_executor(self._worker, self._ram.__getitem__, piece)
                yield Round(number, len(numbers), piece, data)
            if number == limit_rounds - 1 or number and len(numbers) <= last_pages:
                return  # no scan more: what it found would count as sent
            numbers = await loop.run_in_executor(self._worker, self._tracker.collect)


@dataclass(frozen=True)
class Round:
    """A piece of a first copy: round number from 0, pages in this round, and the piece itself."""

    number: int
    pages: int
    numbers: PageNumbers
    data: PageData


def round_messages(piece: Round, vm: int, term: int) -> Iterator[Message]:
    """A piece of a first copy as messages of epoch 0; pages full of zeros travel as numbers only."""
    filled = piece.data.view(np.uint64).any(axis=1)
    if filled.all():
        yield Message(Type.PAGES, vm, term, 0, encode_pages(piece.numbers, piece.data))
        return
    yield Message(Type.ZEROS, vm, term, 0, encode_numbers(piece.numbers[~filled]))
    if filled.any():
        yield Message(Type.PAGES, vm, term, 0, encode_pages(piece.numbers[filled], piece.data[filled]))


def epoch_messages(snapshot: Snapshot, vm: int, term: int, epoch: int, consumed: int, released: int = 0,
                   output: bytes = b"", records: Sequence[Record] = (), stored: int = 0) -> Iterator[Message]:
    """An epoch as messages, COMMIT last. `output`: its small frames, encoded; `records`: what it wrote, by disk. For
    `consumed`, `released` and `stored` see `wire.Commit`."""
    for at in range(0, len(snapshot.numbers), CHUNK_PAGES):
        piece = slice(at, at + CHUNK_PAGES)
        yield Message(Type.PAGES, vm, term, epoch, encode_pages(snapshot.numbers[piece], snapshot.data[piece]))
    inject.point("epoch.sending")
    writes = 0
    for disk, record in enumerate(records):
        for entries, payload in encode_writes(disk, record.writes):
            yield Message(Type.DISK, vm, term, epoch, payload)
            writes += entries
    for at in range(0, len(snapshot.device), MAX_PAYLOAD):
        yield Message(Type.DEVICE, vm, term, epoch, (memoryview(snapshot.device)[at:at + MAX_PAYLOAD],))
    if output:
        yield Message(Type.OUTBOUND, vm, term, epoch, (output,))
    commit = Commit(len(snapshot.numbers), len(snapshot.device), consumed, released, writes,
                    sum(record.data_bytes for record in records), stored)
    yield Message(Type.COMMIT, vm, term, epoch, (commit.encode(),))
