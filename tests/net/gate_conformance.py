# SPDX-License-Identifier: GPL-2.0-or-later
"""What every gate backend must do. A backend's test module subclasses `GateConformance` and gives it a rig."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from appliance.gate import Gate

LIMIT_BYTES = 4 << 20


class Rig(Protocol):
    """A gate, the VM on one side of it, the network on the other, the guard open."""

    gate: Gate

    def send(self, first: int, count: int, size: int = 60) -> None:
        """The VM sends frames with the numbers `first` and on, `size` bytes long."""

    def arrived(self, count: int) -> list[int]:
        """The numbers that came out since the last call; waits for `count` of them, or a deadline."""

    def nothing_more(self) -> bool:
        """Nothing has come out since the last call, and what is under way has had the time to."""


Scene = Callable[[Rig], Coroutine[Any, Any, None]]


class GateConformance:
    """`play` (a fixture of the backend's module) runs a scene with a fresh rig."""

    def test_nothing_passes_before_its_release(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 10)
            rig.gate.mark()
            assert rig.nothing_more()
            assert rig.gate.stats().held_frames == 10

        play(scene)

    def test_release_ends_at_the_mark(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 10)
            first = rig.gate.mark()
            rig.send(10, 10)
            second = rig.gate.mark()
            rig.send(20, 10)
            assert await rig.gate.release(first) == 10
            assert rig.arrived(10) == list(range(10))
            assert rig.nothing_more()
            assert await rig.gate.release(first) == 0, "a mark is released once"
            assert await rig.gate.release(second) == 10
            assert rig.arrived(10) == list(range(10, 20))
            assert rig.nothing_more()

        play(scene)

    def test_a_later_mark_covers_the_earlier_ones(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            marks = []
            for epoch in range(5):
                rig.send(epoch * 4, 4)
                marks.append(rig.gate.mark())
            assert await rig.gate.release(marks[3]) == 16
            assert await rig.gate.release(marks[1]) == 0
            assert rig.arrived(16) == list(range(16))
            assert rig.nothing_more()

        play(scene)

    def test_what_is_dropped_never_passes(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 5)
            mark = rig.gate.mark()
            rig.send(5, 5)
            assert rig.gate.drop() == 10
            assert rig.gate.held_bytes() == 0
            assert await rig.gate.release(mark) == 0
            rig.send(10, 5)
            assert await rig.gate.release(rig.gate.mark()) == 5
            assert rig.arrived(5) == list(range(10, 15))
            assert rig.nothing_more()
            assert rig.gate.stats().dropped_frames == 10

        play(scene)

    def test_a_drop_ends_a_release_under_way(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 3000, 1400)
            release = asyncio.create_task(rig.gate.release(rig.gate.mark()))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            rig.gate.drop()
            moved = await release
            assert moved < 3000, "the release was over before the drop: send more"
            assert rig.arrived(moved) == list(range(moved))
            assert rig.nothing_more()

        play(scene)

    def test_a_long_release_lets_others_run(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 2900, 1400)
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.create_task(other())
            began = time.perf_counter()
            assert await rig.gate.release(rig.gate.mark()) == 2900
            took = time.perf_counter() - began
            task.cancel()
            assert turns >= min(3, took / 0.005)
            assert rig.arrived(2900) == list(range(2900))

        play(scene)

    def test_output_waits_for_what_comes_after_the_mark(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 1)
            assert rig.gate.pending()
            await asyncio.wait_for(rig.gate.output(), 1)
            mark = rig.gate.mark()
            assert not rig.gate.pending()
            waiting = [asyncio.create_task(rig.gate.output()) for _ in range(2)]
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not any(task.done() for task in waiting), "held frames are no new output"
            waiting.pop().cancel()
            rig.send(1, 1)
            await asyncio.wait_for(waiting[0], 1)
            assert rig.gate.pending()
            assert await rig.gate.release(mark) == 1
            assert rig.gate.pending(), "a release is no mark"
            rig.gate.mark()
            rig.gate.drop()
            assert not rig.gate.pending()

        play(scene)

    def test_every_frame_wakes_a_waiter(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            for number in range(200):
                waiter = asyncio.create_task(rig.gate.output())
                await asyncio.sleep(0)
                rig.send(number, 1)
                await asyncio.wait_for(waiter, 1)
                rig.gate.mark()
            assert rig.gate.stats().held_frames == 200

        play(scene)

    def test_the_limit_in_bytes_holds_and_is_counted(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            size = 1400
            fits = LIMIT_BYTES // size
            rig.send(0, fits + 50, size)
            stats = rig.gate.stats()
            assert stats.limit_bytes == LIMIT_BYTES
            assert stats.held_frames == fits and stats.held_bytes == fits * size == rig.gate.held_bytes()
            assert stats.overflow_frames == 50 and stats.overflow_bytes == 50 * size
            assert await rig.gate.release(rig.gate.mark()) == fits
            assert rig.gate.held_bytes() == 0
            rig.send(fits, 1, size)
            assert rig.gate.stats().overflow_frames == 50, "there is room again"
            assert await rig.gate.release(rig.gate.mark()) == 1
            assert rig.arrived(fits + 1) == list(range(fits + 1))

        play(scene)

    def test_the_limit_in_frames_holds(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            limit = rig.gate.stats().limit_frames
            rig.send(0, limit + 7)
            assert rig.gate.stats().held_frames == limit
            assert rig.gate.stats().overflow_frames == 7
            assert await rig.gate.release(rig.gate.mark()) == limit
            assert rig.arrived(limit) == list(range(limit))

        play(scene)

    def test_order_and_marks_hold_over_any_number_of_frames(self, play: Callable[[Scene], None]) -> None:
        """More frames than a 16-bit number can count, with two epochs in flight."""

        async def scene(rig: Rig) -> None:
            step, marks = 6000, []
            for first in range(0, 24 * step, step):
                rig.send(first, step)
                marks.append(rig.gate.mark())
                if len(marks) == 2:
                    assert await rig.gate.release(marks.pop(0)) == step
                    assert rig.arrived(step) == list(range(first - step, first))
            assert rig.nothing_more()

        play(scene)

    def test_closed_means_nothing_passes(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            rig.send(0, 5)
            mark = rig.gate.mark()
            waiter = asyncio.create_task(rig.gate.output())
            await asyncio.sleep(0)
            rig.gate.close()
            rig.gate.close()
            assert (await asyncio.gather(waiter, return_exceptions=True))[0] is not None
            assert await rig.gate.release(mark) == 0
            rig.send(5, 5)
            assert rig.nothing_more()

        play(scene)

    def test_statistics_are_plain_data(self, play: Callable[[Scene], None]) -> None:
        async def scene(rig: Rig) -> None:
            stats = msgspec.json.decode(msgspec.json.encode(rig.gate.stats()))
            assert stats["backend"] == rig.gate.name
            assert stats["overflow_frames"] == 0, "zeros are shown"

        play(scene)
