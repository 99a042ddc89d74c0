# SPDX-License-Identifier: GPL-2.0-or-later
"""A first copy and a resync between two real QEMUs: the images are the same afterwards, and only what differed moved.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.disk.exporter import MIB, exporter, make_image, nodes
from tests.vmlink.machine import until
from vmlink.disk import copy as module
from vmlink.disk.apply import Applier
from vmlink.disk.compare import Question
from vmlink.disk.copy import DiskCopy
from vmlink.disk.dirty import DirtyBlocks
from vmlink.disk.images import Images
from vmlink.disk.record import Kind, Write, decode_writes
from vmlink.disk.spec import DiskSpec
from vmlink.disk.store import Store
from vmlink.errors import VmError
from vmlink.wire import MAX_PAYLOAD, Message, Type, decode_pieces

VM, TERM = 7, 3


@dataclass
class Ends:
    """Both ends of a copy, joined in memory. `cut` ends what passes between them."""

    here: list[Store]
    applier: Applier
    sizes: tuple[int, ...]
    failures: list[Exception]
    rate: int = 0
    cut: bool = False

    def __post_init__(self) -> None:
        self._answering: set[asyncio.Task[None]] = set()
        self.copy = DiskCopy(self.here, VM, TERM, self.send, self.rate)

    async def send(self, message: Message) -> None:
        """What the backup does with it."""
        if self.cut:
            return
        payload = b"".join(message.payload)
        assert len(payload) <= MAX_PAYLOAD and (message.vm, message.term, message.epoch) == (VM, TERM, 0)
        if message.type is Type.DISK:
            disk, writes = decode_writes(payload, self.sizes)
            self.applier.copy([(disk, write) for write in writes])
        else:
            assert message.type is Type.DISK_ASK
            task = asyncio.create_task(self._answer(Question.decode(payload, self.sizes)))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)

    async def _answer(self, question: Question) -> None:
        with contextlib.suppress(VmError):
            answer = await self.applier.answer(question)
            if not self.cut:
                self.copy.answered(decode_pieces(Message(Type.DISK_HASHES, payload=(answer.encode(),))))

    async def contents(self, disk: int = 0) -> tuple[bytes, bytes]:
        """What both hold. Not while a copy runs: the stores here are for one thread."""
        here = await asyncio.to_thread(self.here[disk].read, 0, self.sizes[disk])
        there = await self.applier.run(self.applier._stores[disk].read, 0, self.sizes[disk])
        return bytes(here), bytes(there)


@contextlib.asynccontextmanager
async def ends(directory: Path, sizes: tuple[int, ...], formats: tuple[str, str] = ("raw", "raw"),
               rate: int = 0) -> AsyncIterator[Ends]:
    """Empty images here and there, open."""
    failures: list[Exception] = []
    images = [[make_image(directory / f"{side}{disk}", size, form) for disk, size in enumerate(sizes)]
              for side, form in zip(("here", "there"), formats, strict=True)]
    held = Images([DiskSpec(f"d{disk}", path, formats[1]) for disk, path in enumerate(images[1])],
                  directory / "journal", MIB)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(held.close)
        sides = [await undo.enter_async_context(exporter(directory / f"{side}.sock")) for side in ("here", "there")]
        for (exports, _), form, paths in zip(sides, formats, images, strict=True):
            for disk, path in enumerate(paths):
                await exports.image(f"d{disk}", nodes(path, form, f"d{disk}-x"))

        def connected(side: int) -> list[Store]:
            stores = [Store(f"d{disk}") for disk in range(len(sizes))]
            for store in stores:
                store.connect(sides[side][0].path, store.disk)
            return stores

        applier = Applier(held, 64 * MIB, failures.append)
        undo.push_async_callback(applier.close)
        await applier.open(lambda: connected(1))
        applier.begin(1, None, TERM)
        made = Ends(connected(0), applier, sizes, failures, rate)
        undo.callback(lambda: made.copy.close())
        yield made


def scatter(rng: random.Random, size: int, count: int) -> list[Write]:
    """Writes that do not overlap, with holes between them."""
    cuts = sorted(rng.sample(range(size // 512), 2 * count))
    return [Write(Kind.WRITE, 512 * start, 512 * (end - start), rng.randbytes(512 * (end - start)))
            if rng.random() < 0.8 else Write(Kind.ZERO, 512 * start, 512 * (end - start))
            for start, end in zip(cuts[::2], cuts[1::2], strict=True)]


@pytest.mark.parametrize("formats", [("raw", "raw"), ("qcow2", "raw"), ("raw", "qcow2")])
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_they_held_they_hold_the_same_afterwards(tmp_path: Path, seed: int, formats: tuple[str, str]) -> None:
    """Two disks, with holes and data at random places on both sides."""
    sizes, rng = (16 * MIB, 3 * MIB + 512), random.Random(seed)

    async def run() -> None:
        async with ends(tmp_path, sizes, formats) as pair:
            for disk, size in enumerate(sizes):
                pair.here[disk].write(scatter(rng, size, 12))
                pair.applier.copy([(disk, write) for write in scatter(rng, size, 12)])
            await pair.copy.everything()
            await pair.copy.flushed()
            for disk in range(2):
                here, there = await pair.contents(disk)
                assert here == there and any(here)
            assert not pair.failures
            progress = pair.copy.progress
            assert progress.done == progress.total == sum(sizes)
            before = progress.moved
            await pair.copy.everything()
            assert progress.moved - before < sum(sizes) / 1000  # the same: checksums alone

    asyncio.run(run())


def test_a_hole_moves_nothing_and_makes_a_hole(tmp_path: Path) -> None:
    size = 1 << 38

    async def run() -> None:
        async with ends(tmp_path, (size,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, size // 2, MIB, b"x" * MIB)])
            pair.applier.copy([(0, Write(Kind.WRITE, size // 3 // 4096 * 4096, MIB, b"y" * MIB))])
            async with asyncio.timeout(20):
                await pair.copy.everything()
            found = await pair.applier.run(pair.applier._stores[0].extents, 0, size)
            assert found.data()[-1] == (size // 2, MIB) and sum(length for _, length in found.data()) <= MIB + 4096
            assert pair.copy.progress.moved < 1.2 * MIB

    asyncio.run(run())


@pytest.mark.parametrize("by", ["checksums", "list"])
def test_a_hundredth_that_changed_moves_at_most_twice_of_it(tmp_path: Path, by: str) -> None:
    """4 KiB at random places."""
    size, rng = 64 * MIB, random.Random(5)

    async def run() -> None:
        async with ends(tmp_path, (size,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, at, MIB, rng.randbytes(MIB)) for at in range(0, size, MIB)])
            await pair.copy.everything()
            dirty = DirtyBlocks(size)
            places = rng.sample(range(size // 4096), size // 4096 // 100)
            for place in places:
                pair.here[0].write([Write(Kind.WRITE, 4096 * place, 4096, rng.randbytes(4096))])
                dirty.mark(4096 * place, 4096)
            before = pair.copy.progress.moved
            if by == "list":
                await pair.copy.blocks([(dirty, dirty.take())])
            else:
                await pair.copy.everything()
            here, there = await pair.contents()
            assert here == there
            assert pair.copy.progress.moved - before <= 0.02 * size

    asyncio.run(run())


def test_what_was_listed_moves_alone(tmp_path: Path) -> None:
    """Large ranges, small ones and holes of a list; what is not listed stays as it is."""
    size, rng = 16 * MIB, random.Random(6)

    async def run() -> None:
        async with ends(tmp_path, (size,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, at, MIB, rng.randbytes(MIB)) for at in range(0, size // 2, MIB)])
            dirty = DirtyBlocks(size)
            listed = [(0, 3 * MIB), (5 * MIB + 4096, 4096), (6 * MIB, 8192), (7 * MIB, 8 * MIB)]
            for offset, length in listed:
                dirty.mark(offset, length)
            await pair.copy.blocks([(dirty, dirty.take())])
            here, there = await pair.contents()
            for offset, length in listed:
                assert here[offset:offset + length] == there[offset:offset + length]
            assert not any(there[3 * MIB:5 * MIB]) and any(here[3 * MIB:5 * MIB])
            assert pair.copy.progress.total == sum(length for _, length in listed)

    asyncio.run(run())


def test_begun_again_it_moves_only_what_is_missing(tmp_path: Path) -> None:
    size, rng = 64 * MIB, random.Random(7)

    async def run() -> None:
        async with ends(tmp_path, (size,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, at, MIB, rng.randbytes(MIB)) for at in range(0, size, MIB)])
            first = pair.copy
            copying = asyncio.create_task(first.everything())
            await until(lambda: first.progress.done >= size // 2, "half of it is done")
            pair.cut = True
            copying.cancel()
            with pytest.raises(asyncio.CancelledError):
                await copying
            await asyncio.to_thread(first._worker.shutdown)  # its thread, too, is done with the stores
            moved = first.progress.moved
            assert moved > size // 2
            pair.cut = False
            pair.copy = DiskCopy(pair.here, VM, TERM, pair.send, 0)
            await pair.copy.everything()
            here, there = await pair.contents()
            assert here == there
            assert pair.copy.progress.moved < size - size // 3

    asyncio.run(run())


def test_the_rate_is_kept(tmp_path: Path) -> None:
    size, rate = 24 * MIB, 40 * MIB

    async def run() -> None:
        async with ends(tmp_path, (size,), rate=rate) as pair:
            pair.here[0].write([Write(Kind.WRITE, at, MIB, b"x" * MIB) for at in range(0, size, MIB)])
            begun = time.monotonic()
            await pair.copy.everything()
            assert time.monotonic() - begun > (size - module.PIECE) / rate
            status = pair.copy.progress.status()
            assert status["done_bytes"] == status["total_bytes"] == size and status["left_s"] == 0

    asyncio.run(run())


def test_a_disk_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.2)

    async def run() -> None:
        async with ends(tmp_path, (MIB,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, 0, MIB, b"x" * MIB)])
            await pair.applier.close()
            with pytest.raises(VmError, match="did not answer about its disks within 0.2 s"):
                await pair.copy.everything()

    asyncio.run(run())


def test_closed_while_it_runs_it_leaves_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with ends(tmp_path, (64 * MIB,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, 0, 32 * MIB, b"x" * 32 * MIB)])
            copying = asyncio.create_task(pair.copy.everything())
            await until(lambda: pair.copy.progress.done > 0, "some of it is done")
            copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await copying
            pair.copy.close()
            assert [task for task in asyncio.all_tasks() if "_piece" in repr(task)] == []

    asyncio.run(run())


def test_blocks_of_zeros_move_as_zeros(tmp_path: Path) -> None:
    """Allocated here, but empty."""
    async def run() -> None:
        async with ends(tmp_path, (8 * MIB,)) as pair:
            pair.here[0].write([Write(Kind.WRITE, 0, 8 * MIB, bytes(8 * MIB))])
            pair.applier.copy([(0, Write(Kind.WRITE, 0, 8 * MIB, b"y" * 8 * MIB))])
            await pair.copy.everything()
            here, there = await pair.contents()
            assert here == there == bytes(8 * MIB)
            assert pair.copy.progress.moved < 0.1 * MIB

    asyncio.run(run())


