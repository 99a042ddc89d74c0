# SPDX-License-Identifier: GPL-2.0-or-later
"""An image that someone else has open is refused before QEMU sees it, in words that help."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disk.exporter import MIB, make_image
from vmlink.disk.holders import refuse_in_use
from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError


@contextlib.contextmanager
def held(*words: str) -> Iterator[int]:
    """A QEMU tool that has an image open while the block runs; its pid."""
    tool = subprocess.Popen(["qemu-io", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert tool.stdin is not None and tool.stdout is not None
    tool.stdin.write("length\n")
    tool.stdin.flush()
    try:
        assert "MiB" in tool.stdout.readline()  # it has opened it by now
        yield tool.pid
    finally:
        tool.communicate("quit\n", timeout=20)


@pytest.mark.parametrize(("form", "words"), [("raw", []), ("qcow2", []), ("qcow2", ["-r"])])
def test_an_image_in_use_is_told_with_who_uses_it(tmp_path: Path, form: str, words: list[str]) -> None:
    """Also by one that reads it, where that forbids others to write."""
    disk = DiskSpec("data", make_image(tmp_path / "image", MIB, form), form)
    refuse_in_use(disk)
    with held(*words, "-f", form, str(disk.path)) as pid:
        with pytest.raises(VmError, match=re.escape(f"{disk}: it is in use by process {pid} (qemu-io)")) as told:
            refuse_in_use(disk)
        assert "end what has it open" in told.value.hint
    refuse_in_use(disk)


def test_who_only_looks_is_in_nobodys_way(tmp_path: Path) -> None:
    disk = DiskSpec("data", make_image(tmp_path / "image", MIB))
    with held("-U", "-r", "-f", "raw", str(disk.path)):
        refuse_in_use(disk)


def test_what_is_not_there_is_told_elsewhere(tmp_path: Path) -> None:
    refuse_in_use(DiskSpec("data", tmp_path / "nothing"))


@pytest.mark.skipif(os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop devices")
def test_a_device_that_is_mounted(tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", 8 * MIB)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=20)
    device = subprocess.check_output(["losetup", "--find", "--show", image], text=True, timeout=20).strip()
    place = tmp_path / "mounted"
    place.mkdir()
    try:
        disk = DiskSpec("data", Path(device))
        refuse_in_use(disk)
        subprocess.run(["mount", device, place], check=True, timeout=20)
        try:
            with pytest.raises(VmError, match="it is in use: mounted") as told:
                refuse_in_use(disk)
            assert f"lsblk {device}" in told.value.hint
        finally:
            subprocess.run(["umount", place], check=True, timeout=20)
        refuse_in_use(disk)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True, timeout=20)
