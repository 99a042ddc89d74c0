# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM may be, and what both hosts compare."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vmlink.machine import MIB, spec
from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError
from vmlink.spec import Inherited, arguments, fingerprint


@pytest.mark.parametrize(("changes", "message"), [
    ({"name": "a,file=/etc/passwd"}, "name"),
    ({"name": ""}, "name"),
    ({"memory_bytes": 32 * MIB + 4096}, "memory"),
    ({"memory_bytes": MIB}, "memory"),
    ({"vcpus": 0}, "virtual CPUs"),
    ({"mac": "53:54:00:77:01:10"}, "unicast MAC"),
    ({"mac": "52:54:00:77:01:10,romfile=x"}, "unicast MAC"),
    ({"accel": "xen"}, "accelerator"),
    ({"disks": (DiskSpec("Data,if=none", Path("/x")),)}, "disk name"),
    ({"disks": (DiskSpec("data", Path("/x"), "vmdk"),)}, "unknown format"),
    ({"kernel": Path("/nonexistent/vmlinuz")}, "kernel /nonexistent/vmlinuz does not exist"),
    ({"kernel": Path("/proc/version"), "initrd": Path("/proc")}, "initrd /proc is not a file"),
])
def test_refuses_with_the_cause(changes: dict[str, object], message: str) -> None:
    with pytest.raises(VmError, match=message) as caught:
        spec(**changes).check()
    assert caught.value.hint


def test_missing_program() -> None:
    with pytest.raises(VmError, match="QEMU not found: qemu-system-vax") as caught:
        spec(qemu="qemu-system-vax").binary()
    assert "install" in caught.value.hint


def test_both_sides_differ_only_in_waiting() -> None:
    fds = Inherited(3, 4, 5, 6)
    primary = arguments(spec(), "tcg", fds, incoming=False)
    backup = arguments(spec(), "tcg", fds, incoming=True)
    assert [word for word in primary if word not in backup] == ["-S"]
    assert [word for word in backup if word not in primary] == ["-incoming", "defer"]


def test_extra_arguments_come_last() -> None:
    words = arguments(spec(extra_args=("-snapshot",)), "tcg", Inherited(3, 4, 5, 6), incoming=False)
    assert words[-1] == "-snapshot"


def test_fingerprint_is_of_content_not_of_paths(tmp_path: Path) -> None:
    one, same, other = tmp_path / "one", tmp_path / "same", tmp_path / "other"
    one.write_bytes(b"kernel")
    same.write_bytes(b"kernel")
    other.write_bytes(b"kernel!")
    base = fingerprint(spec(kernel=one), "tcg", "7.2.22")
    assert fingerprint(spec(kernel=same), "tcg", "7.2.22") == base
    assert fingerprint(spec(kernel=other), "tcg", "7.2.22") != base
    assert fingerprint(spec(kernel=one), "kvm", "7.2.22") != base
    assert fingerprint(spec(kernel=one), "tcg", "10.0.0") != base
    assert fingerprint(spec(kernel=one, append="quiet"), "tcg", "7.2.22") != base
    assert fingerprint(spec(kernel=one, extra_args=("-snapshot",)), "tcg", "7.2.22") != base


def test_fingerprint_is_of_disks_not_of_their_images(tmp_path: Path) -> None:
    def with_disks(*disks: DiskSpec) -> str:
        return fingerprint(spec(disks=disks), "tcg", "7.2.22")

    here, there = DiskSpec("data", tmp_path / "data.img"), DiskSpec("data", Path("/dev/loop0"))
    assert with_disks(here) == with_disks(there)
    assert len({with_disks(), with_disks(here), with_disks(DiskSpec("data", here.path, "qcow2")),
                with_disks(DiskSpec("log", here.path)), with_disks(here, DiskSpec("log", there.path)),
                with_disks(DiskSpec("log", there.path), here)}) == 6
