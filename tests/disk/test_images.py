# SPDX-License-Identifier: GPL-2.0-or-later
"""What is remembered of images: through every role, over restarts, and when the operator changes them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.disk import model
from tests.disk.exporter import MIB, make_image
from tests.disk.test_apply import ROOM
from vmlink.disk import state as st
from vmlink.disk.dirty import DirtyBlocks
from vmlink.disk.images import Images
from vmlink.disk.journal import Group
from vmlink.disk.record import Kind, Write
from vmlink.disk.spec import DiskSpec
from vmlink.disk.state import Point, Standing
from vmlink.errors import VmError

POINT = Point(42, 7)


@pytest.fixture
def specs(tmp_path: Path) -> list[DiskSpec]:
    return model.specs(tmp_path)


def opened(specs: list[DiskSpec]) -> Images:
    return Images(specs, specs[0].path.parent / "journal", ROOM)


def again(images: Images, specs: list[DiskSpec]) -> Images:
    """As after a restart of the service."""
    images.close()
    return opened(specs)


def marked(*lists: list[int]) -> list[DirtyBlocks]:
    found = [DirtyBlocks(size) for size in model.SIZES]
    for blocks, numbers in zip(found, lists, strict=True):
        blocks.add(np.array(numbers, np.int64))
    return found


def test_new_images_start_a_vm_that_has_nothing_in_common_with_another(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    assert images.sizes == model.SIZES and st.common(images.state) is None
    point, lists = images.start(3)
    assert point is None and [blocks.marked_bytes for blocks in lists] == [0, 0]
    images = again(images, specs)
    assert images.state.standing is Standing.ACTIVE and images.state.term == 3
    images.close()


def test_a_vm_that_rested_goes_on_where_it_was(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.start(3)
    images.rest(POINT, marked([1, 5], [0]))
    images = again(images, specs)
    assert images.state.standing is Standing.RESTING and st.common(images.state) == POINT
    point, lists = images.start(4)
    assert point == POINT and [blocks.take().tolist() for blocks in lists] == [[1, 5], [0]]
    images = again(images, specs)  # it did not rest this time: nobody knows what it wrote
    assert st.common(images.state) is None
    assert images.start(5)[0] is None
    images.close()


def test_a_vm_without_a_point_does_not_rest(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.start(3)
    images.rest(None, marked([1], []))
    assert images.state.standing is Standing.ACTIVE
    images.close()


def test_lists_that_are_damaged_count_for_nothing(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.start(3)
    images.rest(POINT, marked([1, 5], [0]))
    images.journal.append(Group(1, [(0, Write(Kind.ZERO, 0, 512))]))
    images = again(images, specs)
    assert images.lists() is None
    point, lists = images.start(4)
    assert point is None and [blocks.marked_bytes for blocks in lists] == [0, 0]
    images.close()


def test_half_a_copy_remembers_what_is_the_same(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.set(st.copied_over(images.state, POINT, 3))
    images = again(images, specs)
    assert images.state.standing is Standing.HALF and st.common(images.state) == POINT
    with pytest.raises(VmError, match="the copy from the other host had not ended"):
        images.start(4)
    images.set(st.made_whole(images.state, Point(43, 1)))
    images = again(images, specs)
    assert images.start(4)[0] == Point(43, 1)
    images.close()


def test_an_image_left_behind_starts_no_vm(specs: list[DiskSpec]) -> None:
    """Its disk failed while the VM went on with the other host's copy."""
    images = opened(specs)
    images.start(3)
    images.set(st.failed(images.state, "d1"))
    with pytest.raises(VmError, match="disk d1 on this host is not whole: the disk below it failed"):
        images.start(4)
    handed = st.handed_over(images.state, POINT)
    assert handed == images.state, "nor is it a replica when the VM is handed over"
    images.set(st.made_whole(st.copied_over(images.state, None, 4), POINT))
    assert all(image.whole for image in images.state.images)
    images.close()


def test_who_hands_over_is_a_replica(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.start(3)
    images.set(st.handed_over(images.state, POINT))
    images = again(images, specs)
    assert images.state.standing is Standing.REPLICA and st.common(images.state) == POINT
    images.close()


@pytest.mark.parametrize("standing", ["half", "replica", "resting"])
def test_an_image_that_was_replaced_has_nothing_in_common(specs: list[DiskSpec], standing: str) -> None:
    images = opened(specs)
    images.start(3)
    if standing == "half":
        images.set(st.copied_over(images.state, POINT, 3))
    elif standing == "replica":
        images.set(st.handed_over(images.state, POINT))
    else:
        images.rest(POINT, marked([1], [2]))
    os.replace(make_image(specs[1].path.with_suffix(".new"), model.SIZES[1], specs[1].format), specs[1].path)
    images = again(images, specs)
    assert st.common(images.state) is None
    assert [image.whole for image in images.state.images] == [standing != "half", True]
    if standing == "half":
        with pytest.raises(VmError, match="disk d0 on this host"):
            images.start(4)
    else:
        assert images.start(4)[0] is None
    images.close()


def test_an_image_of_another_size_has_nothing_in_common(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.set(st.handed_over(images.state, POINT))
    os.truncate(specs[0].path, 5 * MIB)
    images = again(images, specs)
    assert st.common(images.state) is None and images.sizes[0] == 5 * MIB
    images.close()


def test_a_journal_that_is_not_replayed_starts_no_vm(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.set(st.made_whole(images.state, POINT))
    images.journal.append(Group(8, [(0, Write(Kind.ZERO, 0, 512))]))
    images = again(images, specs)
    assert images.pending
    with pytest.raises(VmError, match="not in the images yet"):
        images.start(4)
    images.close()


def test_what_a_newer_release_wrote_is_not_guessed(specs: list[DiskSpec]) -> None:
    images = opened(specs)
    images.journal.set_state(b'{"standing":"floating","images":[]}')
    images.journal.close()
    with pytest.raises(VmError, match="cannot be understood") as told:
        opened(specs)
    assert "newer release" in told.value.hint
    images = None  # type: ignore[assignment]
