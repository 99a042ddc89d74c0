# SPDX-License-Identifier: GPL-2.0-or-later
"""QMP: every call ends, with its answer or with an error that names command and cause."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest

from tests.vmlink.machine import frozen, machine
from vmlink.errors import VmError
from vmlink.monitor import Monitor, _parse_ramblocks

Call = Callable[[Monitor], Awaitable[object]]

CALLS: list[tuple[str, Call]] = [
    ("stop", lambda monitor: monitor.stop()),
    ("cont", lambda monitor: monitor.cont()),
    ("query-status", lambda monitor: monitor.status()),
    ("xen-save-devices-state", lambda monitor: monitor.save_devices()),
    ("human-monitor-command", lambda monitor: monitor.ramblocks()),
]

by_call = pytest.mark.parametrize(("command", "call"), CALLS, ids=[name for name, _ in CALLS])


def test_pause_save_resume(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            monitor = qemu.monitor
            await monitor.stop()
            assert await monitor.status() == "paused"
            first, second = await monitor.save_devices(), await monitor.save_devices()
            assert first[:4] == b"QEVM" and len(first) == len(second) > 10_000
            await monitor.cont()
            assert await monitor.status() == "running"

    asyncio.run(scene())


def test_one_save_at_a_time(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            await qemu.monitor.stop()
            results = await asyncio.gather(*(qemu.monitor.save_devices() for _ in range(2)), return_exceptions=True)
            assert isinstance(results[0], bytes)
            assert "has not finished" in str(results[1])
            assert await qemu.monitor.save_devices() == results[0]

    asyncio.run(scene())


def test_takeover(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (primary, memory), machine(tmp_path, incoming=True) as (backup, replica):
            assert await backup.monitor.status() == "inmigrate"
            await primary.monitor.stop()
            state = await primary.monitor.save_devices()
            np.copyto(replica.pages, memory.pages)
            await primary.kill()
            await backup.monitor.load_devices(state)
            assert await backup.monitor.status() == "running"
            # It is an ordinary VM now: it can be paused, and its state is as long as the one it came from.
            await backup.monitor.stop()
            assert len(await backup.monitor.save_devices()) == len(state)

    asyncio.run(scene())


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage", "other"])
def test_a_state_that_does_not_fit(tmp_path: Path, damage: str) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (primary, _), machine(tmp_path, incoming=True) as (backup, _):
            await primary.monitor.stop()
            state = await primary.monitor.save_devices()
            bad = {"empty": b"", "truncated": state[:len(state) // 2], "garbage": os.urandom(300_000),
                   "other": state[:100] + state[101:]}[damage]
            begun = time.monotonic()
            with pytest.raises(VmError, match="(?s)loading the device state: .*exited with 1: .*load"):
                await backup.monitor.load_devices(bad)
            assert time.monotonic() - begun < 4

    asyncio.run(scene())


def test_load_into_a_running_vm(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            with pytest.raises(VmError, match="loading the device state: QEMU says"):
                await qemu.monitor.load_devices(b"state")
            assert await qemu.monitor.status() == "running"

    asyncio.run(scene())


def test_refusal_is_told_in_qemus_words(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            with pytest.raises(VmError, match="no-such-command: QEMU says: .*not been found"):
                await qemu.monitor.call("no-such-command")

    asyncio.run(scene())


@by_call
def test_death_during_a_call(tmp_path: Path, command: str, call: Call) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            os.kill(qemu.pid, signal.SIGSTOP)
            running = asyncio.ensure_future(call(qemu.monitor))
            await asyncio.sleep(0.02)
            begun = time.monotonic()
            os.kill(qemu.pid, signal.SIGKILL)
            with pytest.raises(VmError, match=f"{command}: .*killed by signal 9"):
                await running
            assert time.monotonic() - begun < 2
            with pytest.raises(VmError, match=f"{command}: .*killed by signal 9"):
                await call(qemu.monitor)

    asyncio.run(scene())


@by_call
def test_a_frozen_qemu_times_out(tmp_path: Path, command: str, call: Call) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            qemu.monitor.timeout = 0.2
            with frozen(qemu.pid):
                with pytest.raises(VmError, match=f"{command}: no answer for 0.2 s .*stopped by a signal") as caught:
                    await call(qemu.monitor)
                assert caught.value.hint
            # Late answers are not mistaken for others.
            qemu.monitor.timeout = 5.0
            await qemu.monitor.stop()
            assert await qemu.monitor.status() == "paused"

    asyncio.run(scene())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_backup_lost_during_load(tmp_path: Path, number: int) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (primary, _), machine(tmp_path, incoming=True) as (backup, _):
            await primary.monitor.stop()
            state = await primary.monitor.save_devices()
            os.kill(backup.pid, number)
            words = "loading .*killed by signal 9" if number == signal.SIGKILL else "stopped by a signal"
            with pytest.raises(VmError, match=words):
                await backup.monitor.load_devices(state, timeout=0.5)

    asyncio.run(scene())


def test_events_do_not_pile_up(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            for _ in range(50):
                await qemu.monitor.stop()
                await qemu.monitor.cont()
            client = qemu.monitor._client
            assert client.events.history == () and client.events.empty() and not client._pending

    asyncio.run(scene())


def test_close_is_idempotent_and_calls_fail_afterwards(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            await qemu.monitor.close()
            await qemu.monitor.close()
            with pytest.raises(VmError, match="stop"):
                await qemu.monitor.stop()

    asyncio.run(scene())


def test_a_shut_down_vm_says_why(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, _):
            await qemu.monitor.call("quit")
            assert (await qemu.died()) == "exited with 0"
            assert qemu.monitor.shutdown == "host-qmp-quit"

    asyncio.run(scene())


def test_ramblocks(tmp_path: Path) -> None:
    async def scene() -> None:
        async with machine(tmp_path) as (qemu, ram):
            blocks = {block.name: block for block in await qemu.monitor.ramblocks()}
            assert blocks["ram"].size == ram.size
            assert "pc.bios" in blocks

    asyncio.run(scene())


def test_ramblocks_of_newer_qemus() -> None:
    text = """\
              Block Name    PSize              Offset               Used              Total                HVA  RO
                     ram    4 KiB  0x0000000000000000 0x0000000008000000 0x0000000008000000 0x00007f6e5fe00000  rw
    0000:00:02.0/vga.vram    4 KiB  0x0000000008080000 0x0000000001000000 0x0000000001000000 0x00007f6e5ec00000  rw
                 pc.bios    4 KiB  0x0000000008000000 0x0000000000040000 0x0000000000040000 0x00007f6e68800000  ro
"""
    blocks = {block.name: block for block in _parse_ramblocks(text)}
    assert blocks["ram"].address == 0x7F6E5FE00000 and blocks["ram"].read_only is False
    assert blocks["0000:00:02.0/vga.vram"].size == 1 << 24
    assert blocks["pc.bios"].read_only is True
    assert len(blocks) == 3
