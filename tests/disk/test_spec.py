# SPDX-License-Identifier: GPL-2.0-or-later
"""What an image may be: what QEMU could not use, or is not what it should be, is refused with its cause."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from vmlink.disk.spec import DiskSpec, arguments
from vmlink.errors import VmError

MIB = 1 << 20


def image(directory: Path, form: str, size: str = "8M") -> Path:
    path = directory / f"disk.{form}"
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, size], check=True, timeout=20)
    return path


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_the_size_is_what_the_guest_sees(tmp_path: Path, form: str) -> None:
    path = image(tmp_path, form)
    assert DiskSpec("data", path, form).look() == DiskSpec("data", path, form, 8 * MIB).look() == 8 * MIB


def test_what_cannot_be_an_image(tmp_path: Path) -> None:
    raw, qcow2, odd, empty = image(tmp_path, "raw"), image(tmp_path, "qcow2"), tmp_path / "odd", tmp_path / "empty"
    odd.write_bytes(bytes(1000))
    empty.touch()
    for spec, cause in ((DiskSpec("data", tmp_path / "none"), "there is no such image"),
                        (DiskSpec("data", tmp_path), "neither a file nor a block device"),
                        (DiskSpec("data", Path("/dev/null")), "neither a file nor a block device"),
                        (DiskSpec("data", raw, "qcow2"), "it is no qcow2 image, but format= says qcow2"),
                        (DiskSpec("data", qcow2), "it is a qcow2 image, but format= says raw"),
                        (DiskSpec("data", raw, size=4 * MIB), "it has 8388608 bytes, but size= says 4194304"),
                        (DiskSpec("data", odd), "1000 bytes are no size"),
                        (DiskSpec("data", empty), "0 bytes are no size"),
                        (DiskSpec("data", raw / "below"), "Not a directory"),
                        (DiskSpec("no name", raw), "disk name")):
        with pytest.raises(VmError, match=cause) as caught:
            spec.look()
        assert caught.value.hint


def test_an_image_that_may_not_be_written(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "holdfast-test", tmp_path], check=True, timeout=10)
        try:
            path = image(tmp_path, "raw")
            subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True, timeout=10)
            with pytest.raises(VmError, match="cannot be written: Read-only file system"):
                DiskSpec("data", path).look()
        finally:
            subprocess.run(["umount", tmp_path], check=True, timeout=10)


def test_a_path_with_commas_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "a,b=c.img"
    words = arguments(DiskSpec("data", path), "00000")
    nodes = [json.loads(word) for before, word in zip(words, words[1:], strict=False) if before == "-blockdev"]
    assert nodes[0]["filename"] == str(path)
    assert [node["node-name"] for node in nodes] == ["data-local-file", "data-local", "data-link", "data"]
