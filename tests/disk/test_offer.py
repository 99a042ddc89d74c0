# SPDX-License-Identifier: GPL-2.0-or-later
"""What is said of disks before a copy: it arrives, and whatever arrives, no more than WireError comes out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmlink.disk.dirty import SMALLEST, DirtyBlocks
from vmlink.disk.offer import Begin, Offer
from vmlink.disk.state import Point
from vmlink.wire import WireError

SIZES = (100 * SMALLEST, 512)
numbers = st.integers(0, 2**63 - 1)
points = st.none() | st.builds(Point, st.integers(1, 2**63 - 1), numbers)


def lists(marked: list[int]) -> list[DirtyBlocks]:
    found = [DirtyBlocks(size) for size in SIZES]
    for block in marked:
        found[0].mark(block * SMALLEST, 1)
    return found


@given(points, st.none() | st.lists(st.integers(0, 99)))
def test_an_offer_arrives(point: Point | None, marked: list[int] | None) -> None:
    offer = Offer(point, None if marked is None else lists(marked))
    found = Offer.decode(b"".join(offer.encode()), SIZES)
    assert found.point == point
    if marked is None:
        assert found.lists is None
    else:
        assert found.lists is not None
        assert [blocks.take().tolist() for blocks in found.lists] == [sorted(set(marked)), []]


@given(numbers, points)
def test_a_beginning_arrives(generation: int, since: Point | None) -> None:
    assert Begin.decode(Begin(generation, since).encode()) == Begin(generation, since)


@given(st.binary(max_size=100))
def test_whatever_arrives(payload: bytes) -> None:
    with contextlib.suppress(WireError):
        Offer.decode(payload, SIZES)
    with contextlib.suppress(WireError):
        Begin.decode(payload)


@pytest.mark.parametrize("damage", [
    lambda payload: payload[:-1], lambda payload: payload + b"\0", lambda payload: payload[:3],
    lambda payload: payload[:-1] + bytes([payload[-1] ^ 1]), lambda payload: b"\xff\xff\xff\xff" + payload[4:],
])
def test_a_damaged_offer_is_refused(damage) -> None:  # type: ignore[no-untyped-def]
    payload = b"".join(Offer(Point(1, 2), lists([5])).encode())
    with pytest.raises(WireError):
        Offer.decode(damage(payload), SIZES)


def test_the_lists_of_other_disks_are_refused() -> None:
    payload = b"".join(Offer(Point(1, 2), lists([5])).encode())
    with pytest.raises(WireError, match="2 lists of written blocks for 1 disks"):
        Offer.decode(payload, SIZES[:1])
    with pytest.raises(WireError, match="damaged"):
        Offer.decode(payload, (SIZES[0] - 512, SIZES[1]))


@pytest.mark.parametrize("text", [b"", b"{}", b'{"generation":-1}', b'{"generation":1,"more":2}', b"\xff", b"[" * 5000,
                                  b'{"generation":9223372036854775808}', b'{"generation":1}' + b" " * 70000])
def test_a_beginning_that_makes_no_sense_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        Begin.decode(text)
