# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume that is slow is not gone: what waits for it gets there, however much that is."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.leftovers import no_process_left
from vmlink.disk.record import Kind, Write
from vmlink.errors import VmError
from vmlink.volume import access as module
from vmlink.volume.access import Access
from vmlink.volume.spec import VolumeSpec

KIB, MIB = 1 << 10, 1 << 20


@contextlib.contextmanager
def storage(image: Path, *words: str) -> Iterator[str]:
    """An NBD server of this image; where it is to be found."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["nbdkit", "--foreground", "--ipaddr", "127.0.0.1", "--port", str(port), *words, "file", str(image)]
    with no_process_left():
        served = subprocess.Popen([*command, *(["wdelay=100ms"] if "--filter=delay" in words else [])])
        try:
            deadline = time.monotonic() + 10
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                assert time.monotonic() < deadline
            yield f"nbd://127.0.0.1:{port}/"
        finally:
            served.kill()
            served.wait(10)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    made = tmp_path / "volume"
    with made.open("wb") as file:
        file.truncate(16 * MIB)
    return made


async def write(at: str, directory: Path, writes: list[Write], patience: pytest.MonkeyPatch, seconds: float) -> None:
    """`seconds`: for a portion."""
    access = await Access.open("qemu-system-x86_64", [VolumeSpec("vol", f"{at}x")], directory / "sock")
    try:
        patience.setattr(module, "TIMEOUT", seconds)
        access.lease(time.monotonic() + 120)
        await access.write([writes])
    finally:
        await access.close()


@pytest.mark.slow
def test_a_slow_volume_gets_more_than_it_could_do_in_the_time_for_an_answer(
        image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [random.Random(number).randbytes(MIB) for number in range(8)]
    writes = [Write(Kind.WRITE, number * MIB, MIB, data[number]) for number in range(8)]
    writes.append(Write(Kind.ZERO, 9 * MIB, 5 * MIB))
    writes += [Write(Kind.WRITE, 15 * MIB + number * 4 * KIB, 4 * KIB, data[0][:4 * KIB]) for number in range(100)]
    begun = time.monotonic()
    with storage(image, "--filter=delay") as at:
        asyncio.run(write(at, tmp_path, writes, monkeypatch, 1.0))
    assert time.monotonic() - begun > 1.0, "it was not slow"
    expected = bytearray(16 * MIB)
    for one in writes:
        expected[one.offset:one.offset + one.length] = one.data or bytes(one.length)
    assert image.read_bytes() == expected


@pytest.mark.slow
def test_a_volume_that_does_nothing_counts_as_gone(image: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    with storage(image, "--filter=delay") as at, pytest.raises(VmError, match="nothing was written within"):
        asyncio.run(write(at, tmp_path, [Write(Kind.WRITE, 0, MIB, bytes(MIB))], monkeypatch, 0.05))


def test_who_asks_of_one_that_is_closed_is_told(image: Path, tmp_path: Path) -> None:
    """Reads and writes go on being asked for while the volumes are reached anew."""
    async def run(at: str) -> None:
        access = await Access.open("qemu-system-x86_64", [VolumeSpec("vol", f"{at}x")], tmp_path / "sock")
        access.lease(time.monotonic() + 60)
        await access.close()
        with pytest.raises(VmError, match="not reached at the moment"):
            await access.read(0, 0, 512)
        with pytest.raises(VmError, match="not reached at the moment"):
            await access.write([[Write(Kind.WRITE, 0, 512, bytes(512))]])

    with storage(image) as at:
        asyncio.run(run(at))
