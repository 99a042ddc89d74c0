# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory: nameless, shared, reserved in full or refused with the reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.vmlink.machine import MIB, SHM
from vmlink import ram as ram_module
from vmlink.errors import VmError
from vmlink.ram import PAGE, GuestRam


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


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(VmError, match="No such file"):
        GuestRam.create(tmp_path / "none", MIB)
