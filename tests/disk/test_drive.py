# SPDX-License-Identifier: GPL-2.0-or-later
"""What a real client of QEMU's block layer writes to the drives is marked or recorded, and reads see all of it."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmlink.disk import server
from vmlink.disk.drive import Drive, Drives
from vmlink.disk.record import SECTOR, Kind, Write
from vmlink.disk.spec import DiskSpec
from vmlink.wire import Buffer

KIB, MIB = 1 << 10, 1 << 20
SIZE = 64 * MIB


def image(directory: Path, size: int = SIZE) -> DiskSpec:
    path = directory / "data.img"
    with open(path, "wb") as file:
        file.truncate(size)
    return DiskSpec("data", path)


@asynccontextmanager
async def opened(directory: Path, limit: int = 32 * MIB) -> AsyncIterator[Drives]:
    drives = await Drives.open([image(directory)], limit)
    try:
        yield drives
    finally:
        drives.close()
        await asyncio.sleep(0)


class Client:
    """qemu-io at the server of the drives."""

    def __init__(self, drives: Drives, *commands: str, admitted: bool = True) -> None:
        words = [word for command in commands for word in ("-c", command)]
        where = f"driver=nbd,server.type=unix,server.path={drives.server.address},server.abstract=on,server.tight=on"
        self._process = subprocess.Popen(["qemu-io", "--image-opts", "-t", "none", *words, f"{where},export=data"],
                                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if admitted:
            drives.server.admit(self._process.pid)

    async def said(self) -> str:
        loop = asyncio.get_running_loop()
        try:
            out, _ = await asyncio.wait_for(loop.run_in_executor(None, self._process.communicate), 30)
        finally:
            self._process.kill()
        return out.decode()

    def runs(self) -> bool:
        return self._process.poll() is None


def run(directory: Path, test: Callable[[Drives], Awaitable[None]], limit: int = 32 * MIB) -> None:
    async def whole() -> None:
        async with opened(directory, limit) as drives:
            await test(drives)

    asyncio.run(whole())


def test_unrecorded_writes_are_marked(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        said = await Client(drives, "write -P 1 0 64k", "write -z 1M 64k", "write -P 2 32M 4M", "flush").said()
        assert said.count("wrote") == 3, said
        (drive,) = drives
        offsets, lengths = drive.dirty.ranges(drive.dirty.take())
        assert list(zip(offsets, lengths, strict=True)) == [(0, 64 * KIB), (MIB, 64 * KIB), (32 * MIB, 4 * MIB)]

    run(tmp_path, test)


def test_recorded_writes_come_with_their_epoch(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        drives.record_on()
        await Client(drives, "write -P 1 0 64k", "write -z 1M 64k").said()
        (first,) = drives.cut()
        await Client(drives, "write -P 2 32M 3M").said()
        (second,) = drives.cut()
        assert [(w.kind, w.offset, w.length, bytes(w.data)) for w in first.writes] == [
            (Kind.WRITE, 0, 64 * KIB, b"\1" * 64 * KIB), (Kind.ZERO, MIB, 64 * KIB, b"")]
        assert [write.length for write in second.writes] == [MIB] * 3
        assert b"".join(write.data for write in second.writes) == b"\2" * 3 * MIB
        assert drives.cut()[0].writes == []
        (drive,) = drives
        assert not len(drive.dirty.take())

    run(tmp_path, test)


def test_what_is_not_confirmed_is_marked_when_recording_ends(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        drives.record_on()
        for place in range(4):
            await Client(drives, f"write {place}M 4k").said()
            if place < 3:
                drives.cut()
        drives.acknowledged(2)
        drives.durable(1)
        drives.record_off()
        await Client(drives, "write 9M 4k").said()
        (drive,) = drives
        offsets, _ = drive.dirty.ranges(drive.dirty.take())
        assert list(offsets) == [MIB, 2 * MIB, 3 * MIB, 9 * MIB]

    run(tmp_path, test)


def test_a_full_record_makes_writes_wait_and_no_longer(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        drives.record_on()
        client = Client(drives, *(f"write -P {place} {place}M 1M" for place in range(1, 17)))
        await asyncio.wait_for(drives.filled.wait(), 20)
        taken = 0
        while client.runs():
            if drives.full:
                assert 4 * MIB <= drives._recorded < 6 * MIB
                taken += sum(record.data_bytes for record in drives.cut())
                assert not drives.full
            await asyncio.sleep(0.005)
        assert (await client.said()).count("wrote") == 16
        assert taken + sum(record.data_bytes for record in drives.cut()) == 16 * MIB

    run(tmp_path, test, limit=4 * MIB)


def test_a_full_record_ends_a_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much has arrived, no more is taken than was received at once."""
    monkeypatch.setattr(server, "TURNS", 1000)

    async def test(drives: Drives) -> None:
        drives.record_on()
        client = Client(drives, *(f"aio_write {place * 256}k 256k" for place in range(32)), "aio_flush")
        taken = 0
        while client.runs():
            assert drives._recorded < 2 * MIB
            if drives.full:
                taken += sum(record.data_bytes for record in drives.cut())
            await asyncio.sleep(0.005)
        await client.said()
        assert taken + sum(record.data_bytes for record in drives.cut()) == 8 * MIB

    run(tmp_path, test, limit=64 << 10)


def test_while_the_vm_is_being_paused_all_writes_come_in(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        drives.record_on()
        client = Client(drives, *(f"write {place}M 1M" for place in range(8)))
        await asyncio.wait_for(drives.filled.wait(), 20)
        drives.drain()
        assert (await client.said()).count("wrote") == 8
        assert sum(record.data_bytes for record in drives.cut()) == 8 * MIB

    run(tmp_path, test, limit=MIB)


def test_a_stranger_is_refused(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        said = await Client(drives, "write 0 4k", admitted=False).said()
        assert "wrote" not in said
        (drive,) = drives
        assert not len(drive.dirty.take())

    run(tmp_path, test)


def test_who_says_nothing_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HANDSHAKE_TIMEOUT", 0.05)

    async def test(drives: Drives) -> None:
        drives.server.admit(os.getpid())
        with socket.socket(socket.AF_UNIX) as mute:
            mute.setblocking(False)
            await asyncio.get_running_loop().sock_connect(mute, b"\0" + drives.server.address.encode())
            async with asyncio.timeout(20):
                while await asyncio.get_running_loop().sock_recv(mute, 100):
                    pass

    run(tmp_path, test)


# --- reads ---

class Partner:
    """The other host's copy."""

    def __init__(self, delay: asyncio.Event | None = None) -> None:
        self.content = bytearray(b"p" * SIZE)
        self.asked = 0
        self.delay = delay

    async def read(self, disk: int, offset: int, length: int) -> Buffer:
        self.asked += 1
        found = bytes(self.content[offset:offset + length])
        if self.delay is not None:
            await self.delay.wait()
        return found


def test_without_another_copy_a_read_fails(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        said = await Client(drives, "read 0 4k").said()
        assert "Input/output error" in said

    run(tmp_path, test)


def test_a_read_sees_the_other_copy_and_what_it_lacks(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        partner = Partner()
        drives.source = partner.read
        drives.record_on()
        await Client(drives, "write -P 1 0 4k").said()
        drives.cut()
        await Client(drives, "write -P 2 4k 4k").said()
        said = await Client(drives, "read -P 1 0 4k", "read -P 2 4k 4k", "read -P 112 8k 1M").said()
        assert said.count("read ") == 3 and "failed" not in said, said
        assert partner.asked == 1
        said = await Client(drives, "write -z 4k 8k", "read -P 0 4k 8k", "read -P 1 0 4k").said()
        assert "failed" not in said and partner.asked == 1, said

    run(tmp_path, test)


def test_what_is_acknowledged_while_a_read_is_under_way_is_in_it(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        answer = asyncio.Event()
        drives.source = Partner(answer).read
        drives.record_on()
        (drive,) = drives
        drive.write(Kind.WRITE, 0, 4096, b"1" * 4096)
        drives.cut()
        reading = asyncio.ensure_future(drive.read(0, 8192))
        await asyncio.sleep(0)
        drives.acknowledged(1)
        drive.write(Kind.WRITE, 4096, SECTOR, b"2" * SECTOR)
        answer.set()
        assert bytes(await reading) == b"1" * 4096 + b"2" * SECTOR + b"p" * (4096 - SECTOR)

    run(tmp_path, test)


def test_an_image_that_is_left_takes_nothing_that_is_not_recorded(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        (drive,) = drives
        drive.away = True
        drives.record_on()
        assert "wrote" in await Client(drives, "write 0 4k").said()
        drives.record_off()
        assert "Input/output error" in await Client(drives, "write 0 4k").said()

    run(tmp_path, test)


PLACES = st.integers(0, 15)
STEPS = st.lists(st.one_of(st.tuples(st.just("write"), PLACES, st.integers(1, 255)),
                           st.tuples(st.sampled_from(["cut", "acknowledge", "read"]), PLACES, st.just(0))), max_size=40)


@settings(deadline=None, max_examples=60)
@given(STEPS)
def test_a_read_always_sees_the_last_write(tmp_path_factory: pytest.TempPathFactory,
                                           steps: list[tuple[str, int, int]]) -> None:
    """The other copy is as old as the last acknowledged epoch."""
    async def test(drives: Drives) -> None:
        partner, expected = Partner(), bytearray(b"p" * 16 * SECTOR)
        epochs: list[list[Write]] = []
        drives.source = partner.read
        drives.record_on()
        (drive,) = drives
        for step, place, value in steps:
            if step == "write":
                drive.write(Kind.WRITE, place * SECTOR, SECTOR, bytes([value]) * SECTOR)
                expected[place * SECTOR:(place + 1) * SECTOR] = bytes([value]) * SECTOR
            elif step == "cut":
                epochs.append(drives.cut()[0].writes)
            elif step == "acknowledge" and epochs:
                for write in epochs.pop(0):
                    partner.content[write.offset:write.offset + write.length] = write.data
                drives.acknowledged(drives.epoch - len(epochs))
            elif step == "read":
                length = (16 - place) * SECTOR
                assert bytes(await drive.read(place * SECTOR, length)) == expected[place * SECTOR:]
        assert bytes(await drive.read(0, 16 * SECTOR)) == expected

    run(tmp_path_factory.mktemp("drive"), test)


def test_sizes_and_names(tmp_path: Path) -> None:
    async def test(drives: Drives) -> None:
        assert drives.sizes() == [SIZE] and len(drives) == 1
        (drive,) = drives
        assert drives.find("data") is drive and drives.find("other") is None
        assert isinstance(drive, Drive) and drive.dirty.block == 4096
        assert drive.dirty.take().dtype == np.int64

    run(tmp_path, test)
