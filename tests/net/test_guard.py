# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard judges each frame by its own stamp: frames are written to the out tap behind the gate's back."""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

import msgspec
import pytest

from appliance.errors import Unsafe
from appliance.front import Front
from appliance.tap import VNET_HEADER
from tests.net.stage import Stage, frame, numbers


def stamped(seq: int, number: int) -> bytes:
    plain = frame(number.to_bytes(4, "big"))
    return plain[:12] + b"\x88\xa8" + (seq & 0xFFFF).to_bytes(2, "big") + plain[12:]


def write(front: Front, one: bytes) -> None:
    os.write(front._out, bytes(VNET_HEADER) + one)


def test_closed_drops_everything(stage: Stage, play: Callable[..., None]) -> None:
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        front.guard.commit(10)
        assert not front.guard.is_open
        write(front, stamped(5, 1))
        front.open(1)
        write(front, stamped(5, 2))
        front.shut()
        write(front, stamped(5, 3))
        front.open(1)
        write(front, stamped(5, 4))
        assert numbers(sniffer.wait(2)) == [2, 4]
        assert front.guard.stats().closed_frames == 2 and front.guard.stats().passed_frames == 2

    play(scene)


def test_a_frame_beyond_the_commit_is_early(stage: Stage, play: Callable[..., None]) -> None:
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        front.open(1)
        front.guard.commit(7)
        for seq in (7, 8, 6, 9, 7 + 16384):
            write(front, stamped(seq, seq))
        assert numbers(sniffer.wait(2)) == [7, 6]
        assert front.guard.stats().early_frames == 3
        front.guard.commit(3)
        assert front.guard.committed == 7, "what is committed stays committed"

    play(scene)


@pytest.mark.parametrize("committed", [0xFFFF, 0x10000, 0x10001, 0x7FFF, 0x8000, (1 << 40) + 3])
def test_the_boundary_survives_the_wrap_of_the_stamp(stage: Stage, play: Callable[..., None], committed: int) -> None:
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        front.open(1)
        front.guard.commit(committed)
        for distance in (-16384, -1, 0, 1, 2, 16384):
            write(front, stamped(committed + distance, distance + 100000))
        assert numbers(sniffer.wait(3)) == [100000 - 16384, 99999, 100000]
        assert front.guard.stats().early_frames == 3

    play(scene)


def test_a_frame_without_our_stamp_is_dropped(stage: Stage, play: Callable[..., None]) -> None:
    stage.quiet()
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        front.open(1)
        front.guard.commit(100)
        write(front, frame(b"no tag"))
        plain = frame(b"a guest's own tag")
        write(front, plain[:12] + b"\x81\x00\x00\x05" + plain[12:])
        write(front, stamped(100, 1))
        assert numbers(sniffer.wait(1, None)) == [1]
        assert front.guard.stats().unstamped_frames == 2

    play(scene)


def test_only_the_current_term_opens(play: Callable[..., None]) -> None:
    async def scene(front: Front) -> None:
        front.open(4)
        front.shut()
        with pytest.raises(Unsafe, match="term 3 is over"):
            front.open(3)
        assert not front.guard.is_open and not front.inbound.stats().open
        with pytest.raises(Unsafe):
            front.open(0)
        front.open(4)
        assert msgspec.json.decode(msgspec.json.encode(front.guard.stats()))["term"] == 4

    play(scene)


def test_a_lease_runs_out_without_anybody_doing_anything(stage: Stage, play: Callable[..., None]) -> None:
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        front.open(1)
        front.guard.commit(9)
        write(front, stamped(1, 1))
        until = time.monotonic() + 0.05
        front.guard.lease(until)
        write(front, stamped(2, 2))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), until - time.monotonic())
        write(front, stamped(3, 3))
        assert front.guard.stats().expired_frames == 1
        front.guard.lease(time.monotonic() + 60)
        write(front, stamped(4, 4))
        front.guard.lease(0)
        front.open(2)  # rightfully alone: no lease
        write(front, stamped(5, 5))
        assert numbers(sniffer.wait(4)) == [1, 2, 4, 5]

    play(scene)
