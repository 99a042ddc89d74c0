# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory: nameless, shared, reserved in full or refused with the reason."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.vmlink.machine import MIB, SHM, machine
from vmlink import ram as ram_module
from vmlink.errors import VmError
from vmlink.ram import PAGE, GuestRam
from vmlink.tracker import choose


def free(place: Path) -> int:
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize


def test_is_shared_zeroed_and_has_no_name(small_tmpfs: Path) -> None:
    ram = GuestRam.create(small_tmpfs, 4 * MIB)
    try:
        assert ram.pages.shape == (1024, PAGE) and ram.pages.dtype == np.uint8 and not ram.pages.any()
        ram.pages[7] = 42
        assert os.pread(ram.fd, 2, 7 * PAGE) == b"\x2a\x2a"
        assert list(small_tmpfs.iterdir()) == []
        assert free(small_tmpfs) == 4 * MIB
    finally:
        ram.close()


def test_close_gives_the_memory_back(small_tmpfs: Path) -> None:
    ram = GuestRam.create(small_tmpfs, 4 * MIB)
    ram.pages[0] = 1
    ram.close()
    ram.close()
    assert free(small_tmpfs) == 8 * MIB


def test_close_while_someone_still_looks() -> None:
    ram = GuestRam.create(SHM, MIB)
    view = ram.pages[3]
    ram.close()
    assert not view.any()


def test_too_little_room_says_how_much(small_tmpfs: Path) -> None:
    with pytest.raises(VmError, match="needs 16 MiB, 8 MiB are free") as caught:
        GuestRam.create(small_tmpfs, 16 * MIB)
    assert "larger" in caught.value.hint
    assert free(small_tmpfs) == 8 * MIB


def test_room_lost_after_the_check(small_tmpfs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Somebody else may be faster; the kernel's own answer has to do then.
    monkeypatch.setattr(ram_module, "_check_room", lambda directory, size: None)
    with pytest.raises(VmError, match="does not fit"):
        GuestRam.create(small_tmpfs, 16 * MIB)
    assert free(small_tmpfs) == 8 * MIB


def test_more_than_the_host_has() -> None:
    with pytest.raises(VmError, match="does not fit"):
        GuestRam.create(SHM, 1 << 50)


@pytest.mark.parametrize("size", [0, -PAGE, PAGE + 1])
def test_size_is_whole_pages(size: int) -> None:
    with pytest.raises(VmError, match="multiple of 4096"):
        GuestRam.create(SHM, size)


def test_only_memory_file_systems() -> None:
    with pytest.raises(VmError, match="on proc") as caught:
        GuestRam.create(Path("/proc"), MIB)
    assert "host.ram_dir" in caught.value.hint


@pytest.fixture
def huge_pages(tmp_path: Path) -> Iterator[Path]:
    """A hugetlbfs with 20 pages in the pool."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pool.exists():
        pytest.skip("this kernel has no huge pages of 2 MiB")
    before = pool.read_text()
    place = tmp_path / "huge"
    place.mkdir()
    pool.write_text(str(int(before) + 20))
    try:
        if int(pool.read_text()) < int(before) + 20:
            pytest.skip("this host's memory is too fragmented for huge pages")
        subprocess.run(["mount", "-t", "hugetlbfs", "-o", "pagesize=2M", "holdfast-test", place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True, timeout=10)
    finally:
        pool.write_text(before)


def test_a_vm_on_huge_pages(huge_pages: Path, tmp_path: Path) -> None:
    with pytest.raises(VmError, match="multiple of 2097152"):
        GuestRam.create(huge_pages, 3 * MIB)
    with pytest.raises(VmError, match="does not fit"):
        GuestRam.create(huge_pages, 4096 * MIB)

    async def scene() -> None:
        async with machine(tmp_path, ram_dir=huge_pages) as (qemu, ram):
            tracker = choose(qemu, ram)
            try:
                await qemu.monitor.stop()
                tracker.arm()
                copy = tracker.source.copy()
                await qemu.monitor.cont()
                await qemu.monitor.stop()
                found = tracker.collect()
                copy[found] = tracker.source[found]
                assert np.array_equal(copy, ram.pages)
            finally:
                tracker.close()

    asyncio.run(scene())


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="No such file"):
        GuestRam.create(tmp_path / "none", MIB)
