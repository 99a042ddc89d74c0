# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a VM on one host, from role to role: what the service does with them around a QEMU."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from appliance.disk_settings import Disk
from appliance.disks import Disks
from tests.disk import model
from tests.disk.test_apply import SEED
from tests.vmlink.machine import machine, spec
from vmlink.disk import state as st
from vmlink.disk.apply import Applier
from vmlink.disk.drive import Drives
from vmlink.disk.images import Images
from vmlink.disk.journal import Group
from vmlink.disk.state import Point, Standing
from vmlink.errors import VmError
from vmlink.qemu import VmSpec

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a tap")


@pytest.fixture
def vm(tmp_path: Path) -> VmSpec:
    return spec(disks=tuple(model.specs(tmp_path)))


def disks_of(vm: VmSpec, directory: Path) -> Disks:
    host: Any = SimpleNamespace(state_dir=directory, run_dir=directory)
    return Disks(vm, host, {})


def test_a_journal_is_replayed_before_a_vm_starts_afresh(vm: VmSpec, tmp_path: Path) -> None:
    """A backup that was killed, whose host is told to start the VM."""
    left = Images(vm.disks, tmp_path / "vmt.disks")
    left.set(st.made_whole(left.state, Point(9, 1)))
    writes = [(0, model.epoch(SEED, 1)[-2][1]), (1, model.epoch(SEED, 1)[-1][1])]
    left.journal.append(Group(5, writes))
    left.close()

    async def run() -> None:
        disks = disks_of(vm, tmp_path)
        past = await disks.start(3)
        assert past.point == Point(9, 5) and [blocks.marked_bytes for blocks in past.lists] == [0, 0]
        assert disks.status(None, None)["standing"] is Standing.ACTIVE
        await disks.close()

    asyncio.run(run())
    assert vm.disks[0].path.read_bytes()[-512:] == writes[0][1].data
    assert not list(tmp_path.glob("*.sock"))


def test_an_image_that_is_gone_or_half_starts_no_vm(vm: VmSpec, tmp_path: Path) -> None:
    async def run() -> None:
        disks = disks_of(vm, tmp_path)
        await disks.start(3)
        half = Images(vm.disks, tmp_path / "other.disks")
        half.set(st.copied_over(half.state, None, 3))
        half.close()
        os.replace(tmp_path / "other.disks", tmp_path / "vmt.disks")
        with pytest.raises(VmError, match="is not whole: the copy from the other host had not ended"):
            await disks.start(4)
        vm.disks[1].path.unlink()
        with pytest.raises(VmError, match="there is no such image"):
            await disks.start(4)
        await disks.close()

    asyncio.run(run())


@pytest.mark.parametrize("other", ["a hard link", "a symbolic link", "the same name"])
def test_an_image_that_another_vm_has_too_starts_none(vm: VmSpec, tmp_path: Path, other: str) -> None:
    """Also one that became the other's after the configuration had been checked."""
    image, link = vm.disks[1].path, tmp_path / "linked"
    host: Any = SimpleNamespace(state_dir=tmp_path, run_dir=tmp_path)
    path = image if other == "the same name" else link
    disks = Disks(vm, host, {"web2": (Disk(name="data", path=path),)})

    async def run() -> None:
        if other != "the same name":
            await disks.start(3)
            await disks.close()
            link.symlink_to(image) if other == "a symbolic link" else link.hardlink_to(image)
        with pytest.raises(VmError, match=f"{image}: it is disk data of VM web2 as well") as told:
            await disks.start(4)
        assert "its own image" in told.value.hint
        await disks.close()

    asyncio.run(run())


def test_a_waiting_qemu_takes_epochs_and_then_gets_its_images(vm: VmSpec, tmp_path: Path) -> None:
    async def run() -> None:
        disks, failures = disks_of(vm, tmp_path), []  # type: Disks, list[Exception]
        drives = await Drives.open(vm.disks, 1 << 20)
        async with machine(tmp_path, vm, incoming=True, drives=drives) as (qemu, _):
            applier = await disks.receive(qemu, 1 << 20, failures.append)
            assert isinstance(applier, Applier)
            applier.begin(9, None, 3)
            for number in range(1, 4):
                applier.add(number, model.epoch(SEED, number))
            past = await disks.take_over(applier, 4)
            assert past.point == Point(9, 3) and not failures
            assert disks.status(drives, None)["standing"] is Standing.ACTIVE
            async with disks.readable(qemu) as stores:  # the VM's own nodes, which no Store of ours has written to
                found = [bytes(await asyncio.to_thread(store.read, 0, store.size)) for store in stores]
            assert found == model.played(SEED, range(1, 4))
        drives.close()
        disks.forget_qemu()
        await disks.close()

    asyncio.run(run())
    assert not list(tmp_path.glob("*.sock"))
