# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest writes to its disks: all of it is in the image and in the record of its epoch, whatever fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.disk.guest import MIB, make_image, started
from vmlink.disk.record import Record

pytestmark = pytest.mark.slow


def applied(image: bytearray, records: list[Record], disk: int = 0) -> None:
    for write in records[disk].writes:
        image[write.offset:write.offset + write.length] = write.data or bytes(write.length)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_records_give_the_same_image(tmp_path: Path, form: str) -> None:
    """Of two disks: what was recorded, laid over what was there at the start, is what the images hold."""
    async def run() -> None:
        disks = [make_image(tmp_path / f"{name}.img", 16 * MIB, form) for name in ("one", "two")]
        async with started(tmp_path, disks) as guest:
            await guest.qemu.stop()
            guest.drives.record_on()
            await guest.qemu.cont()
            copies = [bytearray(16 * MIB), bytearray(16 * MIB)]
            for number in range(6):
                jobs = [guest.ask(f"write {number % 2} {part * 2 * MIB} {MIB + 512 * number} {number * 7 + part}")
                        for part in range(4)]
                done = asyncio.gather(*jobs, guest.ask(f"zero {number % 2} {number * 65536} 131072"))
                while not done.done():
                    await guest.qemu.stop()  # in the middle of it
                    records = guest.drives.cut()
                    await guest.qemu.cont()
                    for disk in (0, 1):
                        applied(copies[disk], records, disk)
                    await asyncio.wait([done], timeout=0.01)
                assert set(await done) == {"ok"}
            await guest.qemu.stop()
            records = guest.drives.cut()
            for disk in (0, 1):
                applied(copies[disk], records, disk)
        for disk, copy in zip(disks, copies, strict=True):
            plain = tmp_path / f"{disk.name}.plain"
            process = await asyncio.create_subprocess_exec("qemu-img", "convert", "-f", form, "-O", "raw",
                                                           str(disk.path), str(plain))
            assert await asyncio.wait_for(process.wait(), 20) == 0
            assert plain.read_bytes() == copy

    asyncio.run(run())
