# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole epochs into real images: in order, bounded, and a failure is told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.disk import model
from tests.disk.exporter import MIB, exporter
from tests.disk.model import SIZES
from tests.vmlink.machine import until
from vmlink import inject
from vmlink.disk import apply as module
from vmlink.disk.apply import Applier, merged
from vmlink.disk.exporter import connected, offer
from vmlink.disk.images import Images
from vmlink.disk.journal import Journal
from vmlink.disk.record import Kind, Write
from vmlink.disk.state import Point, Standing
from vmlink.disk.store import REQUEST, Store
from vmlink.errors import VmError

SEED = 11
LIMIT = 4 * MIB
ROOM = 8 * MIB


@contextlib.asynccontextmanager
async def applier(directory: Path, limit: int = LIMIT) -> AsyncIterator[tuple[Applier, Images, list[Exception]]]:
    """An applier on the disks of the model, and what it said of failures."""
    specs, heard = model.specs(directory), []  # type: list[DiskSpec], list[Exception]
    images = Images(specs, directory / "journal", ROOM)
    try:
        async with exporter(directory / "nbd.sock") as (exports, _):
            await offer(exports, specs)
            made = Applier(images, limit, heard.append)
            try:
                await made.open(lambda: connected(exports, specs))
                yield made, images, heard
            finally:
                await made.close()
    finally:
        images.close()


async def contents(of: Applier) -> list[bytes]:
    return await of.run(lambda: [bytes(store.read(0, store.size)) for store in of._stores])


# --- merging ------------------------------------------------------------------------------------------

def a_write(disk: int, kind: Kind, offset: int, length: int, value: int) -> tuple[int, Write]:
    return disk, Write(kind, offset, length, bytes([value]) * length if kind is Kind.WRITE else b"")


writes = st.lists(st.builds(a_write, st.integers(0, 1), st.sampled_from(Kind), st.integers(0, 300), st.integers(1, 60),
                            st.integers(1, 255)), max_size=12)


@given(st.lists(writes, max_size=4))
def test_merged_writes_leave_the_same_behind_and_do_not_overlap(epochs: list[list[tuple[int, Write]]]) -> None:
    expected, found = ([bytearray(400), bytearray(400)] for _ in range(2))
    for epoch in epochs:
        model.play(expected, epoch)
    result = merged(epochs)
    model.play(found, result)
    assert found == expected
    for (disk, write), (next_disk, following) in zip(result, result[1:], strict=False):
        assert disk < next_disk or disk == next_disk and write.offset + write.length <= following.offset


def test_what_follows_is_one_request_up_to_a_limit() -> None:
    some = [(0, Write(Kind.WRITE, 4096 * n, 4096, bytes([n % 251]) * 4096)) for n in range(300)]
    [(_, first), (_, rest)] = merged([some[::-1]])
    assert (first.length, rest.length) == (REQUEST, 300 * 4096 - REQUEST)
    zeros = [(0, Write(Kind.ZERO, 0, 512)), (0, Write(Kind.TRIM, 512, 1 << 40)), (1, Write(Kind.TRIM, 0, 512))]
    assert merged([zeros]) == [(0, Write(Kind.ZERO, 0, 512 + (1 << 40))), (1, Write(Kind.TRIM, 0, 512))]
    large = [(0, Write(Kind.WRITE, n * MIB, MIB, b"x" * MIB)) for n in range(2)]
    assert all(one[1].data is other[1].data for one, other in zip(merged([large]), large, strict=True))  # no copy


# --- into images ----------------------------------------------------------------------------------------

def test_epochs_arrive_in_the_images(tmp_path: Path) -> None:
    """A copy, epochs one by one and many at once; each settled state is that of the model."""
    async def run() -> None:
        async with applier(tmp_path) as (made, images, heard):
            made.begin(77, None, 5)
            await made.settle()
            assert images.state.standing is Standing.HALF and not any(image.whole for image in images.state.images)
            made.copy(merged([model.epoch(SEED, 0)]))
            assert await contents(made) == model.after(SEED, 0)
            assert made.durable == 0
            for number in range(1, 40):
                made.add(number, model.epoch(SEED, number))
                if number in (1, 2, 20):
                    await made.settle()
                    assert await contents(made) == model.after(SEED, number)
                    assert images.state.standing is Standing.REPLICA and images.state.point == Point(77, number)
            made.add(40, [])
            assert await contents(made) == model.after(SEED, 39)
            await until(lambda: made.durable == 40 and made.waiting_bytes == 0, "all is applied")
            made.add(41, [])
            assert made.durable == 41
            assert await made.take_over(6) == Point(77, 40)
            assert images.state.standing is Standing.ACTIVE and images.state.term == 6
            assert not heard

    asyncio.run(run())


def test_the_journal_is_emptied_when_it_is_quiet_and_when_it_is_full(tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECKPOINT", 256 << 10)

    async def run() -> None:
        async with applier(tmp_path) as (made, images, _):
            made.begin(77, None, 5)
            for number in range(1, 30):
                made.add(number, model.epoch(SEED, number))
                await made.room()
                assert images.journal.used <= module.CHECKPOINT + module.GROUP
            await until(lambda: images.journal.used == 0 and images.state.point == Point(77, 29), "it is empty")

    asyncio.run(run())


def test_what_is_done_in_which_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss keeps only what was synced: the journal before the images, the images before it is emptied."""
    done: list[str] = []

    def noted(of: type, name: str) -> None:
        real = getattr(of, name)
        monkeypatch.setattr(of, name, lambda *args: [done.append(f"{of.__name__}.{name}"), real(*args)][1])

    async def run() -> None:
        async with applier(tmp_path) as (made, _, _):
            made.begin(77, None, 5)
            made.add(1, model.epoch(SEED, 1))
            await made.settle()
            for cls, name in ((Journal, "append"), (Journal, "sync"), (Journal, "set_state"), (Store, "write"),
                              (Store, "flush")):
                noted(cls, name)
            made.add(2, model.epoch(SEED, 2))
            await made.settle()

    asyncio.run(run())
    assert done == ["Journal.append", "Journal.sync", "Store.write", "Store.write", "Store.flush", "Store.flush",
                    "Journal.set_state"]


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """The acknowledgement waits for room; nothing is refused."""
    async def run() -> None:
        async with applier(tmp_path, limit=64 << 10) as (made, _, heard):
            made.begin(77, None, 5)
            waited = 0
            for number in range(1, 60):
                made.add(number, model.epoch(SEED, number))
                waited += not made.has_room
                async with asyncio.timeout(20):
                    await made.room()
                assert made.waiting_bytes < 64 << 10
            assert waited
            await made.settle()
            assert await contents(made) == model.played(SEED, range(1, 60)) and not heard

    asyncio.run(run())


def test_a_copy_that_begins_anew_forgets_what_came_before(tmp_path: Path) -> None:
    async def run() -> None:
        async with applier(tmp_path) as (made, images, _):
            made.begin(77, None, 5)
            for number in range(1, 20):
                made.add(number, model.epoch(SEED, number))
            made.begin(78, Point(77, 3), 5)
            await made.settle()
            assert (made.durable, made.waiting_bytes) == (0, 0)
            assert images.state.standing is Standing.HALF and images.state.point == Point(77, 3)
            made.copy([(disk, Write(Kind.ZERO, 0, size)) for disk, size in enumerate(SIZES)])
            made.copy(merged([model.epoch(SEED, 0)]))
            made.add(1, model.epoch(SEED, 1))
            await made.settle()
            assert await contents(made) == model.after(SEED, 1)
            assert images.state.point == Point(78, 1)

    asyncio.run(run())


def test_a_failure_is_told_once_and_nobody_waits_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    armed = {"disk.applying": ("raise", 2)}

    async def run() -> None:
        async with applier(tmp_path, limit=1) as (made, _, heard):
            made.begin(77, None, 5)
            monkeypatch.setattr(inject, "_armed", dict(armed))
            for number in range(1, 5):
                made.add(number, model.epoch(SEED, number))
                await made.room()
            await until(lambda: bool(heard), "it is told")
            assert [str(error) for error in heard] == ["disk.applying"]
            with pytest.raises(VmError, match="cannot be used any more"):
                await made.settle()

    asyncio.run(run())


def test_a_disk_that_hangs_is_a_failure_only_when_it_holds_up_the_primary(tmp_path: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL", 0.2)
    going_on = threading.Event()

    async def run() -> None:
        async with applier(tmp_path, limit=64 << 10) as (made, _, heard):
            made.begin(77, None, 5)
            made.add(1, model.epoch(SEED, 1))
            await made.settle()
            hanging = asyncio.ensure_future(made.run(going_on.wait, 20))
            await asyncio.sleep(0)  # it is in the worker
            try:
                made.add(2, [])
                await made.room()
                assert not heard
                for number in range(3, 12):
                    made.add(number, model.epoch(SEED, number))
                async with asyncio.timeout(20):
                    await made.room()
                assert ["nothing was written to the images for 0.2 s"] == [str(error) for error in heard]
            finally:
                going_on.set()
            await hanging

    asyncio.run(run())


def test_nobody_takes_over_from_half_a_copy(tmp_path: Path) -> None:
    async def run() -> None:
        async with applier(tmp_path) as (made, images, _):
            made.begin(77, None, 5)
            with pytest.raises(VmError, match="no replica but half"):
                await made.take_over(6)
            assert images.state.standing is Standing.HALF

    asyncio.run(run())
