# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk grows, comes and goes while its VM runs: with a real guest, which finds what is there."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.disk.guest import MIB, DiskGuest, make_image, started
from tests.vmlink.machine import machine, spec, until
from vmlink.disk.drive import Drives
from vmlink.disk.plug import answered, ask_to_let_go, close, is_plugged, named, plug_in
from vmlink.disk.resize import enlarge, resize
from vmlink.disk.spec import DiskSpec, placed
from vmlink.errors import VmError

pytestmark = pytest.mark.slow


async def finds(guest: DiskGuest, line: str) -> None:
    """The guest notices by itself, a little later."""
    async with asyncio.timeout(20):
        while True:
            if await guest.ask(line) == "ok":
                return
            await asyncio.sleep(0.02)


def images(directory: Path, form: str = "raw") -> tuple[DiskSpec, ...]:
    return placed([make_image(directory / f"{name}.img", 16 * MIB, form) for name in ("one", "two")])


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_disk_grows(tmp_path: Path, form: str) -> None:
    """And again; its old content stays, what it gains is zeros. A size that the image cannot have changes nothing."""
    async def run() -> None:
        one = images(tmp_path, form)[0]
        async with started(tmp_path, [one]) as guest:
            [drive] = guest.drives
            assert await guest.ask("write 0 0 65536 7") == "ok"
            for size, at in ((24 * MIB, 20), (40 * MIB, 30)):
                await guest.qemu.stop()
                await resize(guest.qemu.monitor, drive, size, guest.drives.server.address, tmp_path / "stand-in")
                drive.grow(size)
                await guest.qemu.cont()
                await finds(guest, f"check 0 {size - MIB} {MIB} 0")
                assert await guest.ask(f"write 0 {at * MIB} 65536 {at}") == "ok"
                assert drive.dirty.marked_bytes >= 8 * MIB
            await guest.qemu.stop()
            with pytest.raises(VmError, match="resizing disk one"):
                await resize(guest.qemu.monitor, drive, 1 << 62, guest.drives.server.address, tmp_path / "stand-in")
            await guest.qemu.cont()
            assert drive.size == 40 * MIB
            for at, seed in ((0, 7), (20 * MIB, 20), (30 * MIB, 30)):
                assert await guest.ask(f"check 0 {at} 65536 {seed}") == "ok"
            assert await guest.ask(f"write 0 {39 * MIB} 65536 8") == "ok"
            assert not any("stand-in" in name for name in await named(guest.qemu.monitor))
        assert one.look() == 40 * MIB

    asyncio.run(run())


def test_a_disk_comes_and_goes(tmp_path: Path) -> None:
    """What was plugged in loads into a QEMU that had it from its start."""
    async def run() -> None:
        one, two = images(tmp_path)
        async with started(tmp_path, [one]) as guest:
            monitor, heard = guest.qemu.monitor, list[tuple[str, bool]]()
            monitor.listener = lambda event, data: heard.extend(filter(None, [answered(event, data)]))
            guest.drives.add(two, 16 * MIB)
            await plug_in(monitor, two, guest.drives.server.address)
            await finds(guest, "write 1 0 65536 9")
            with pytest.raises(VmError, match="plugging in disk three"):
                await plug_in(monitor, replace(two, name="three"), guest.drives.server.address)
            assert not any("three" in name for name in await named(monitor))
            await guest.qemu.stop()
            state, memory = await guest.qemu.save_devices(), guest.ram.pages.copy()
            await guest.qemu.cont()
            assert await ask_to_let_go(monitor, "two")
            await until(lambda: heard == [("two", True)], "the guest lets go", 20)
            assert not await ask_to_let_go(monitor, "two") and not await is_plugged(monitor, "two")
            await close(monitor, two)
            guest.drives.remove("two")
            assert await guest.ask("write 0 0 65536 9") == "ok"
            assert "error" in await guest.ask("check 1 0 65536 9")
        async with started(tmp_path, [one, two], incoming=True) as other:
            other.ram.pages[:] = memory
            await other.qemu.monitor.load_devices(state)
            assert await other.ask("check 1 0 65536 9") == "ok"

    asyncio.run(run())


def test_a_guest_that_does_not_listen_keeps_its_disk(tmp_path: Path) -> None:
    """There is but firmware, which never answers."""
    async def run() -> None:
        one, two = images(tmp_path)
        drives = await Drives.open([one, two], 32 * MIB)
        try:
            async with machine(tmp_path, spec(disks=(one, two)), drives=drives) as (qemu, _):
                heard = list[object]()
                qemu.monitor.listener = lambda event, data: heard.extend(filter(None, [answered(event, data)]))
                assert await ask_to_let_go(qemu.monitor, "two")
                assert await is_plugged(qemu.monitor, "two") and not heard
        finally:
            drives.close()

    asyncio.run(run())


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_an_image_that_nobody_uses_grows(tmp_path: Path, form: str) -> None:
    one = images(tmp_path, form)[0]
    enlarge(one, 24 * MIB)
    enlarge(one, 24 * MIB)
    assert one.look() == 24 * MIB
    with pytest.raises(VmError, match="no image becomes smaller|it has 25165824 bytes"):
        enlarge(one, 16 * MIB)
    with pytest.raises(VmError, match="cannot be enlarged"):
        enlarge(one, 1 << 62)
