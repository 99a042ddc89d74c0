# SPDX-License-Identifier: GPL-2.0-or-later
"""A first copy or a resync of a VM's disks: finds what differs on the other host, and sends only that.

One piece of a disk, top to bottom (`_piece`): look up its holes; ask for the other side's checksums of the rest, coarse
ones, while it is read here; ask again, finer, about the blocks that differ; send what differs; wait until it is there.
A few pieces are under way at once. The VM runs meanwhile: what it writes is marked elsewhere, and comes in a later
round.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from vmlink.disk.compare import COARSE, FINE, Answer, Flags, Hashes, Question, Ranges, hashed, runs
from vmlink.disk.dirty import DirtyBlocks, Numbers
from vmlink.disk.record import Kind, Write, encode_writes
from vmlink.disk.store import Store
from vmlink.errors import VmError
from vmlink.wire import Buffer, Message, Type

PIECE = 4 << 20
"""Bytes of a disk that are compared together."""
PIECES = 4
"""Pieces under way at once: what the other side may have to write at any time is PIECE * PIECES bytes."""
STRETCH = 1 << 30
"""Bytes of a disk whose holes are looked up together."""
MOST_RANGES = 4096
"""Ranges in a piece."""
ANSWER_TIMEOUT = 300.0
"""Seconds for an answer. The other side tells by itself when its disk fails; until then it may be slow."""

Part = tuple[int, memoryview]
"""Offset and content of a part of a disk."""
P = ParamSpec("P")
T = TypeVar("T")
Send = Callable[[Message], Awaitable[None]]
"""Sends within the stream; waits until there is room. Raises VmError when there is nobody to send to."""


class Pace:
    """Lets through `rate` bytes a second (0: as fast as they come), counted over what was let through lately."""

    def __init__(self, rate: int) -> None:
        self._rate, self._free_at = rate, 0.0

    async def let(self, size: int) -> None:
        """Wait until it is the turn of `size` bytes."""
        if not self._rate:
            return
        now = time.monotonic()
        self._free_at = max(self._free_at, now) + size / self._rate
        await asyncio.sleep(self._free_at - size / self._rate - now)


@dataclass
class Progress:
    """What a copy has done so far, in bytes: of the disks, of what is to be looked at, and of what moved."""

    round: int = 0
    done: int = 0
    total: int = 0
    moved: int = 0
    begun: float = 0.0

    @property
    def seconds(self) -> float:
        """For how long it has been going on."""
        return time.monotonic() - self.begun

    def status(self) -> dict[str, object]:
        """For the status reply."""
        rate = self.done / max(self.seconds, 1e-3)
        return {"what": "disks", "round": self.round, "done_bytes": self.done, "total_bytes": self.total,
                "moved_bytes": self.moved, "bytes_per_s": round(rate),
                "left_s": round((self.total - self.done) / rate, 1) if rate else None}


class DiskCopy:
    """See the module. `stores` are connected, one for each disk, and no other thread uses them; `close` closes them.

    `send` takes DISK and DISK_ASK messages; `answered` must be given the payloads of DISK_HASHES.
    """

    def __init__(self, stores: Sequence[Store], vm: int, term: int, send: Send, rate: int) -> None:
        self._stores, self._vm, self._term, self._send_message = stores, vm, term, send
        self._pace = Pace(rate)
        self._worker = ThreadPoolExecutor(1, "copy of disks")
        self._asked = secrets.randbits(62)  # an answer that was meant for an earlier copy must not fit
        self._questions: dict[int, Question] = {}
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self.progress = Progress(begun=time.monotonic())

    def close(self) -> None:
        """End what is under way; idempotent."""
        for store in self._stores:
            store.close()
        for waiting in self._answers.values():
            waiting.cancel()
        self._worker.shutdown(wait=False, cancel_futures=True)

    # --- a round ---

    async def everything(self) -> None:
        """Compare all of every disk. Raises VmError."""
        await self._round([(disk, [(0, store.size)]) for disk, store in enumerate(self._stores)])

    async def blocks(self, written: Sequence[tuple[DirtyBlocks, Numbers]]) -> None:
        """Compare blocks, of each disk those that were taken from its list. Raises VmError."""
        ranges = []
        for disk, (dirty, numbers) in enumerate(written):
            offsets, lengths = dirty.ranges(numbers)
            ranges.append((disk, list(zip(offsets.tolist(), lengths.tolist(), strict=True))))
        await self._round(ranges)

    async def flushed(self) -> None:
        """Return when all that was sent is on the other side's disk. Raises VmError."""
        await self._ask(Question(0, 0, 0, []))

    async def _round(self, disks: Sequence[tuple[int, Ranges]]) -> None:
        self.progress.total += sum(length for _, ranges in disks for _, length in ranges)
        under_way: set[asyncio.Task[None]] = set()
        try:
            for disk, ranges in disks:
                async for piece in self._pieces(disk, ranges):
                    await self._pace.let(sum(length for _, length in piece))
                    while len(under_way) >= PIECES:
                        under_way = await _less(under_way)
                    under_way.add(asyncio.create_task(self._piece(disk, piece)))
            while under_way:
                under_way = await _less(under_way)
            await self._ask(Question(0, 0, FINE, []))  # the holes are there too
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        self.progress.round += 1

    async def _pieces(self, disk: int, ranges: Ranges) -> AsyncIterator[Ranges]:
        """What has to be read of these ranges, about PIECE bytes at a time."""
        piece: list[tuple[int, int]] = []
        size = 0
        async for offset, length in self._data(disk, ranges):
            while length:
                part = min(length, PIECE - size)
                piece.append((offset, part))
                offset, length, size = offset + part, length - part, size + part
                if size == PIECE or len(piece) == MOST_RANGES:
                    yield piece
                    piece, size = [], 0
        if piece:
            yield piece

    async def _data(self, disk: int, ranges: Ranges) -> AsyncIterator[tuple[int, int]]:
        """The ranges without the holes in them; what is a hole here is made one there."""
        for offset, length in ranges:
            if length <= COARSE:  # to look up what is small takes longer than to read it
                yield offset, length
                continue
            for at in range(offset, offset + length, STRETCH):
                found = await self._work(self._stores[disk].extents, at, min(STRETCH, offset + length - at))
                holes = found.holes()
                await self._send_writes(disk, [Write(Kind.ZERO, *hole) for hole in holes])
                self.progress.done += sum(size for _, size in holes)
                for part in found.data():
                    yield part

    # --- a piece ---

    async def _piece(self, disk: int, ranges: Ranges) -> None:
        size = sum(length for _, length in ranges)
        grain = COARSE if size > len(ranges) * COARSE else FINE
        asked = asyncio.ensure_future(self._ask(Question(0, disk, grain, ranges)))
        try:
            data, own = await self._work(self._read, disk, ranges, grain)
            theirs = await asked
        finally:
            asked.cancel()
        differ = theirs.zero | (own != theirs.hashes).any(axis=1)
        finer = differ & ~theirs.zero & (grain != FINE)
        found = _select(ranges, data, grain, differ & ~finer)
        if finer.any():
            found += await self._finer(disk, _select(ranges, data, grain, finer))
        if found:
            await self._send_writes(disk, [_as_write(offset, view) for offset, view in found])
            await self._ask(Question(0, disk, FINE, []))
        self.progress.done += size

    async def _finer(self, disk: int, blocks: Sequence[Part]) -> list[Part]:
        """What differs within blocks that do."""
        ranges, data = [(offset, len(view)) for offset, view in blocks], [view for _, view in blocks]
        theirs = await self._ask(Question(0, disk, FINE, ranges))
        own = await self._work(hashed, data, FINE)
        return _select(ranges, data, FINE, theirs.zero | (own != theirs.hashes).any(axis=1))

    def _read(self, disk: int, ranges: Ranges, grain: int) -> tuple[list[memoryview], Hashes]:
        data = [memoryview(bytearray(length)) for _, length in ranges]
        self._stores[disk].read_into([(offset, view) for (offset, _), view in zip(ranges, data, strict=True)])
        return data, hashed(data, grain)

    # --- to and from the other side ---

    async def _send_writes(self, disk: int, writes: Sequence[Write]) -> None:
        for _, payload in encode_writes(disk, writes):
            await self._send(Type.DISK, payload)

    async def _send(self, kind: Type, payload: tuple[Buffer, ...]) -> None:
        message = Message(kind, self._vm, self._term, 0, payload)
        self.progress.moved += message.size
        await self._send_message(message)

    async def _ask(self, question: Question) -> Answer:
        """Ask under a number of its own. Raises VmError when there is no answer in time."""
        self._asked += 1
        number = self._asked
        self._questions[number] = question = replace(question, number=number)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            await self._send(Type.DISK_ASK, (question.encode(),))
            async with asyncio.timeout(ANSWER_TIMEOUT):
                return await answer
        except TimeoutError:
            raise VmError(f"the other host did not answer about its disks within {ANSWER_TIMEOUT:g} s",
                          "is the disk there in trouble? See its kernel's log") from None
        finally:
            del self._questions[number], self._answers[number]

    def answered(self, payload: Buffer) -> None:
        """Take a DISK_HASHES payload; one that nobody waits for any more is of an earlier copy. Raises WireError."""
        answer = Answer.decode(payload, self._questions)
        if answer is not None and not (waiting := self._answers[answer.number]).done():
            self.progress.moved += len(payload)
            waiting.set_result(answer)

    async def _work(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, partial(work, *args, **kwargs))


async def _less(under_way: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Those that go on when one or more have ended. Raises what one of those raised."""
    done, rest = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        under_way.discard(task)
    for task in done:
        task.result()
    return rest


def _select(ranges: Ranges, data: Sequence[memoryview], grain: int, flags: Flags) -> list[Part]:
    """The content of the blocks whose flag is set; those that follow each other within a range are one part."""
    parts: list[Part] = []
    first = 0
    for (offset, length), view in zip(ranges, data, strict=True):
        blocks = -(-length // grain)
        for begin, end in runs(flags[first:first + blocks]):
            parts.append((offset + begin * grain, view[begin * grain:end * grain]))
        first += blocks
    return parts


def _as_write(offset: int, view: memoryview) -> Write:
    if np.frombuffer(view, np.uint8).any():
        return Write(Kind.WRITE, offset, len(view), view)
    return Write(Kind.ZERO, offset, len(view))
