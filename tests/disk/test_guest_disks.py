# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest writes to its disks: all of it is in the image and in the record of its epoch, whatever fails."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.disk.guest import MIB, DiskGuest, make_image, started
from tests.vmlink.machine import until
from vmlink.disk.drive import Drives
from vmlink.disk.fault import Fault, Place, leave, understand
from vmlink.disk.record import Record
from vmlink.disk.spec import DiskSpec

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


# --- a local image that fails ---

BAD = 20480
"""The sector at which an image fails."""


class Failing(DiskSpec):
    """An image that fails at BAD when it is written, at BAD + 8 when it is read; `flush`: also when it is flushed."""

    flush = False

    def nodes(self, name: str) -> list[dict[str, object]]:
        file, form = super().nodes(name)
        rules: list[dict[str, object]] = [
            {"event": "none", "errno": 5, "sector": BAD, "iotype": "write"},
            {"event": "none", "errno": 5, "sector": BAD + 8, "iotype": "read"}]
        if self.flush:
            rules.append({"event": "none", "errno": 5, "iotype": "flush"})
        fails = {"driver": "blkdebug", "node-name": f"{name}-fails", "image": f"{name}-file", "inject-error": rules}
        return [file, fails, form | {"file": f"{name}-fails"}]


class FailingFlush(Failing):
    flush = True


class Partner:
    """The other host, which has every epoch up to the last one that was cut."""

    def __init__(self, drives: Drives, image: bytes) -> None:
        self._drives, self.image = drives, bytearray(image)
        self.asked = 0
        drives.source = self.read

    def take(self) -> None:
        applied(self.image, self._drives.cut())
        self._drives.acknowledged(self._drives.epoch)

    async def read(self, disk: int, offset: int, length: int) -> bytes:
        self.asked += 1
        return bytes(self.image[offset:offset + length])


def failing(directory: Path, kind: type[DiskSpec] = Failing) -> DiskSpec:
    image = make_image(directory / "data.img", 16 * MIB)
    return kind(image.name, image.path)


class Heard(list[Fault]):
    """What QEMU tells of its disks."""

    def __init__(self, guest: DiskGuest) -> None:
        super().__init__()
        guest.qemu.monitor.listener = lambda event, data: self.extend(filter(None, [understand(event, data)]))

    async def of(self, place: Place) -> Fault:
        await until(lambda: any(fault.place is place for fault in self), f"a fault of a {place}", 20)
        return next(fault for fault in self if fault.place is place)


async def protected(guest: DiskGuest) -> Partner:
    await guest.qemu.stop()
    guest.drives.record_on()
    partner = Partner(guest.drives, next(iter(guest.drives)).spec.path.read_bytes())
    await guest.qemu.cont()
    return partner


def test_a_failed_read_is_answered_by_the_other_copy(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path, [failing(tmp_path)]) as guest:
            heard, partner = Heard(guest), await protected(guest)
            at = (BAD + 8) * 512
            assert await guest.ask(f"write 0 {at} 4096 5") == "ok"
            partner.take()
            assert await guest.ask(f"check 0 {at} 4096 5") == "ok"
            assert partner.asked == 1
            assert await guest.ask(f"write 0 {at} 512 6") == "ok"
            assert await guest.ask(f"check 0 {at} 512 6") == "ok"
            assert await guest.ask(f"check 0 {at} 1024 6") == f"differs at {at + 512}"
            assert (await heard.of(Place.IMAGE)).operation == "read"
            assert await guest.qemu.monitor.status() == "running"

    asyncio.run(run())


@pytest.mark.parametrize("kind", [Failing, FailingFlush])
def test_a_failed_write_is_made_again_on_the_other_copy(tmp_path: Path, kind: type[DiskSpec]) -> None:
    async def run() -> None:
        async with started(tmp_path, [failing(tmp_path, kind)]) as guest:
            heard, partner = Heard(guest), await protected(guest)
            at = BAD * 512
            writing = asyncio.ensure_future(guest.ask(f"write 0 {at} 4096 5"))
            fault = await heard.of(Place.REQUEST)
            assert (fault.disk, fault.operation) == ("data", "write") and "Input/output error" in fault.cause
            for _ in range(2):  # checkpoints go on
                await guest.qemu.stop()
                assert len(await guest.qemu.save_devices())
                partner.take()
                await guest.qemu.cont()
            assert not writing.done()
            (drive,) = guest.drives
            await leave(guest.qemu.monitor, drive, guest.drives.server.address)
            await leave(guest.qemu.monitor, drive, guest.drives.server.address)  # once more does no harm
            await guest.qemu.retry()
            assert await writing == "ok"
            assert await guest.ask(f"check 0 {at} 4096 5") == "ok"
            assert await guest.ask(f"write 0 0 {MIB} 7") == await guest.ask(f"trim 0 {2 * MIB} {MIB}") == "ok"
            await guest.qemu.stop()
            partner.take()
            await guest.qemu.cont()
            asked = partner.asked
            assert await guest.ask(f"check 0 0 {MIB} 7") == await guest.ask(f"check 0 {2 * MIB} {MIB} 0") == "ok"
            assert partner.asked > asked
            assert not any((tmp_path / "data.img").read_bytes()[:MIB])  # the image is left alone

    asyncio.run(run())


def test_a_vm_paused_on_purpose_is_not_resumed(tmp_path: Path) -> None:
    async def run() -> None:
        async with started(tmp_path, [failing(tmp_path)]) as guest:
            heard = Heard(guest)
            asking = asyncio.ensure_future(guest.ask(f"write 0 {BAD * 512} 4096 5"))
            await heard.of(Place.REQUEST)
            await guest.qemu.stop()
            await guest.qemu.retry()
            assert await guest.qemu.monitor.status() == "io-error"
            asking.cancel()

    asyncio.run(run())


def test_a_broken_connection_is_made_anew(tmp_path: Path) -> None:
    """In the middle of writes: each of them is recorded all the same, and the guest sees nothing."""
    async def run() -> None:
        async with started(tmp_path, [make_image(tmp_path / "data.img", 16 * MIB)]) as guest:
            heard, partner = Heard(guest), await protected(guest)
            for number in range(5):
                writing = asyncio.gather(*(guest.ask(f"write 0 {part * 4 * MIB} {4 * MIB} {number * 4 + part + 1}")
                                           for part in range(4)))
                before = guest.drives._recorded
                await until(lambda before=before: guest.drives._recorded > before, "writes", 20)
                for connection in list(guest.drives.server._connections):
                    connection.close()
                assert await writing == ["ok"] * 4
                await guest.qemu.stop()
                partner.take()
                await guest.qemu.cont()
            await guest.qemu.stop()
            assert partner.image == (tmp_path / "data.img").read_bytes()
            assert not [fault for fault in heard if fault.place is Place.REQUEST]

    asyncio.run(run())


def test_a_vm_that_waits_for_its_disk_goes_on_elsewhere(tmp_path: Path) -> None:
    """A checkpoint of a VM that a failed write has stopped: where it is loaded the write is made again."""
    async def run() -> None:
        there = tmp_path / "there"
        there.mkdir()
        async with (started(tmp_path, [failing(tmp_path)]) as here,
                    started(there, [make_image(there / "data.img", 16 * MIB)], incoming=True) as backup):
            heard, partner = Heard(here), await protected(here)
            asking = asyncio.ensure_future(here.ask(f"write 0 {BAD * 512} 4096 5"))
            await heard.of(Place.REQUEST)
            await here.qemu.stop()
            state = await here.qemu.save_devices()
            partner.take()
            backup.ram.pages[:] = here.ram.pages
            asking.cancel()
            (there / "data.img").write_bytes(partner.image)
            await backup.qemu.monitor.load_devices(state)
            assert await backup.ask(f"check 0 {BAD * 512} 4096 5") == "ok"
            assert await backup.ask(f"write 0 {BAD * 512} 4096 6") == "ok"

    asyncio.run(run())
