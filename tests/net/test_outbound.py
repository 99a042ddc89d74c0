# SPDX-License-Identifier: GPL-2.0-or-later
"""Outbound: small frames in the hold are copied by epoch, and can be sent again by another front."""

import os
from collections.abc import Callable

import pytest

from appliance import outbound
from appliance.front import Front
from tests.net.stage import Stage, frame, numbered, numbers, tap_write


def test_copies_go_with_the_epoch_that_sent_them(stage: Stage, play: Callable[..., None]) -> None:
    stage.quiet()

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        for one in numbered(0, 3):
            tap_write(vm, one)
        first = front.gate.mark()
        for one in numbered(3, 2):
            tap_write(vm, one)
        taken = front.outbound.take(first.seq)
        assert [number for number, _ in taken] == [1, 2, 3]
        assert [copy[10:] for _, copy in taken] == numbered(0, 3), "without the stamp"
        assert front.outbound.take(first.seq) == []
        assert [number for number, _ in front.outbound.take(front.gate.mark().seq)] == [4, 5]
        os.close(vm)

    play(scene)


def test_large_frames_and_too_many_are_left_out(
    stage: Stage, play: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.quiet()
    monkeypatch.setattr(outbound, "EPOCH_BYTES", 1000)

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        for one in [frame(b"x" * 3000), *numbered(0, 3, 400)]:
            tap_write(vm, one)
        taken = front.outbound.take(front.gate.mark().seq)
        assert [number for number, _ in taken] == [2, 3]
        assert front.outbound.skipped == 1
        tap_write(vm, numbered(9, 1)[0])
        front.outbound.forget()
        assert front.outbound.take(front.gate.mark().seq) == []
        os.close(vm)

    play(scene)


def test_what_is_sent_again_passes_an_open_guard_alone(stage: Stage, play: Callable[..., None]) -> None:
    stage.quiet()
    sniffer = stage.sniff()

    async def scene(front: Front) -> None:
        vm = await front.attach_vm()
        for one in numbered(0, 4):
            tap_write(vm, one)
        copies = [copy for _, copy in front.outbound.take(front.gate.mark().seq)]
        front.send_again(copies[:2])
        assert front.guard.stats().closed_frames == 2
        front.open(1)
        front.send_again(copies[2:])
        assert numbers(sniffer.wait(2)) == [2, 3]
        os.close(vm)

    play(scene)
