# SPDX-License-Identifier: GPL-2.0-or-later
"""What an image got after the moment that two hosts had in common: it is compared, and the rest is not for its sake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as strategies

from tests.disk.exporter import MIB, make_image
from tests.disk.test_apply import ROOM
from vmlink.disk import state as st
from vmlink.disk.dirty import SMALLEST, DirtyBlocks, Unconfirmed
from vmlink.disk.images import Images
from vmlink.disk.journal import Group
from vmlink.disk.mirror import Mirror
from vmlink.disk.offer import Offer
from vmlink.disk.record import Kind, Write
from vmlink.disk.resize import enlarge
from vmlink.disk.spec import SLOTS, DiskSpec, placed
from vmlink.disk.state import Image, Point, Standing, State
from vmlink.errors import VmError
from vmlink.wire import WireError

POINT = Point(7, 3)
SIZES = (4 * MIB, MIB)


@pytest.fixture
def disks(tmp_path: Path) -> list[DiskSpec]:
    for name, size in (("one", SIZES[0]), ("two", SIZES[1])):
        make_image(tmp_path / f"{name}.raw", size)
    return [DiskSpec(name, tmp_path / f"{name}.raw") for name in ("one", "two")]


def opened(disks: list[DiskSpec]) -> Images:
    return Images(disks, disks[0].path.with_name("journal"), ROOM)


def replica(disks: list[DiskSpec]) -> Images:
    images = opened(disks)
    images.set(st.made_whole(images.state, POINT))
    return images


class Listed:
    """The lists of a disk that a VM runs on."""

    def __init__(self, size: int) -> None:
        self.dirty, self.unconfirmed = DirtyBlocks(size), Unconfirmed()


def test_a_disk_that_is_new_on_a_replica_alone_is_compared(disks: list[DiskSpec]) -> None:
    """The point stands for the other one."""
    replica(disks[:1]).close()
    images = opened(disks)
    offer = images.offered()
    assert (offer.point, offer.beyond) == (POINT, (0, SIZES[1]))
    listed = [Listed(size) for size in SIZES]
    assert Mirror(listed, POINT).agrees(offer.point, offer.lists, offer.beyond)
    assert [each.dirty.marked_bytes for each in listed] == [0, SIZES[1]]
    images.set(st.copied_over(images.state, POINT, 2))  # a copy that breaks off leaves it so
    assert images.offered().beyond == (0, SIZES[1])
    images.set(st.made_whole(images.state, POINT))
    assert images.offered().beyond == ()
    images.close()


def test_a_disk_that_went_and_came_is_new(disks: list[DiskSpec]) -> None:
    replica(disks).close()
    images = opened(disks[:1])
    assert images.offered() == Offer(POINT)
    images.set(images.state)
    images.close()
    images = opened(disks)
    assert images.offered().beyond == (0, SIZES[1])
    images.close()


def test_who_starts_from_it_lists_what_came_later(disks: list[DiskSpec]) -> None:
    replica(disks[:1]).close()
    images = opened(disks)
    point, lists = images.start(9)
    assert (point, [each.marked_bytes for each in lists]) == (POINT, [0, SIZES[1]])
    assert not any(image.beyond for image in images.state.images)
    images.close()


@pytest.mark.parametrize("done", [False, True])
def test_an_image_that_grows_on_purpose_stays_known(disks: list[DiskSpec], done: bool) -> None:
    """Killed before or after it has its new size."""
    images = replica(disks)
    images.growing("one", 6 * MIB)
    images.close()
    if done:
        enlarge(disks[0], 6 * MIB)
    images = opened(disks)
    assert images.sizes == (6 * MIB if done else 4 * MIB, MIB)
    assert images.offered() == Offer(POINT, None, (2 * MIB, 0) if done else ())
    images.close()


def test_an_image_that_grows_otherwise_is_another(disks: list[DiskSpec]) -> None:
    images = replica(disks)
    images.growing("one", 6 * MIB)
    images.close()
    enlarge(disks[0], 7 * MIB)
    images = opened(disks)
    assert images.offered().point is None
    images.close()


def test_what_the_journal_has_gets_into_an_image_that_has_grown(disks: list[DiskSpec]) -> None:
    images = replica(disks)
    images.growing("one", 6 * MIB)
    images.journal.append(Group(4, [(0, Write(Kind.WRITE, 0, 512, bytes(range(256)) * 2))]))
    images.journal.sync()
    images.close()
    enlarge(disks[0], 6 * MIB)
    images = opened(disks)
    assert images.pending
    taken: list[Write] = []
    images.replay([_Store(taken), _Store([])])  # type: ignore[list-item]
    assert [write.offset for write in taken] == [0]
    assert images.offered() == Offer(Point(7, 4), None, (2 * MIB, 0))
    images.close()


class _Store:
    """Takes what an image would get."""

    def __init__(self, taken: list[Write]) -> None:
        self._taken = taken

    def needed(self, writes: object, look_from: int) -> list[Write]:
        return list(writes)  # type: ignore[call-overload, no-any-return]

    def write(self, writes: object) -> None:
        self._taken.extend(writes)  # type: ignore[arg-type]

    def flush(self) -> None:
        pass


def test_the_disks_of_a_vm_that_runs(disks: list[DiskSpec]) -> None:
    """In the order of their places, whatever came when; a VM that rests then has lists of each."""
    images = opened(disks[:1])
    images.start(1)
    images.add(disks[1], SIZES[1], ["two", "one"])
    assert [image.name for image in images.state.images] == ["two", "one"]
    images.grown("two", 2 * MIB)
    assert images.sizes == (2 * MIB, SIZES[0])
    images.rest(POINT, [DirtyBlocks(size) for size in images.sizes])
    assert images.state.standing is Standing.RESTING and len(images.lists() or ()) == 2
    images.remove("one")
    assert images.sizes == (2 * MIB,)
    images.close()


@given(strategies.lists(strategies.integers(0, 300), max_size=20), strategies.integers(1, 40 * SMALLEST))
def test_marks_outlive_growth(blocks: list[int], more: int) -> None:
    size = 301 * SMALLEST - 512
    marks = DirtyBlocks(size)
    for block in blocks:
        marks.mark(block * SMALLEST, 1)
    grown = marks.grown(size + more * 512)
    assert grown.size == size + more * 512
    assert set(grown.take().tolist()) == {*blocks, *range(300, -(-grown.size // SMALLEST))}


def test_marks_outlive_growth_into_larger_blocks() -> None:
    marks = DirtyBlocks(4 << 30)
    marks.mark(SMALLEST, 1)
    grown = marks.grown(5 << 30)
    assert grown.block == 2 * marks.block
    assert grown.take().tolist() == [0, *range((4 << 30) // grown.block, (5 << 30) // grown.block)]


def test_an_offer_tells_what_came_later() -> None:
    sizes = (8 * SMALLEST, 512)
    content = b"".join(bytes(part) for part in Offer(POINT, None, (SMALLEST, 512)).encode())
    assert Offer.decode(content, sizes) == Offer(POINT, None, (SMALLEST, 512))
    for other in ((8 * SMALLEST,), (SMALLEST, 511), (*sizes, 512)):
        with pytest.raises(WireError, match="more of a disk came later"):
            Offer.decode(content, other)


def test_each_disk_keeps_its_place() -> None:
    plain = [DiskSpec(name, Path("/x")) for name in ("one", "two", "three")]
    assert [disk.slot for disk in placed(plain)] == [1, 2, 3]
    one, _, three = placed(plain)
    assert [(disk.name, disk.slot) for disk in placed([one, three, DiskSpec("four", Path("/x"))])] == [
        ("one", 1), ("four", 2), ("three", 3)]
    with pytest.raises(VmError, match="32 disks"):
        placed([DiskSpec(f"d{number}", Path("/x")) for number in range(len(SLOTS) + 1)])


def test_an_old_state_is_understood() -> None:
    """What was written before disks could grow."""
    old = (b'{"standing":"replica","images":[{"name":"one","size":512,"identity":"file 1","whole":true}],'
           b'"point":{"generation":7,"epoch":3},"term":2,"kept":[],"digest":""}')
    assert st.decode(old) == State(Standing.REPLICA, (Image("one", 512, "file 1"),), POINT, 2)
