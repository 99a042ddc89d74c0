# SPDX-License-Identifier: GPL-2.0-or-later
"""The image's recipe: archives in a fixed form, modules in an order that loads, the same bytes twice."""

from __future__ import annotations

import hashlib
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from images import packages
from images.disk import build as disk
from images.initramfs import Tree, modules

ROOT = Path(__file__).resolve().parents[2]


def entries(archive: bytes) -> list[tuple[str, int, bytes]]:
    """Path, mode and data of every entry of a newc archive, read independently of the recipe."""
    found: list[tuple[str, int, bytes]] = []
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        field = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, mtime, size, name_size = field[1], field[5], field[6], field[11]
        assert mtime == 0
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = at + (110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found.append((name, mode, archive[start : start + size]))
        at = (start + size + 3) // 4 * 4


def test_archive_is_sorted_and_folders_come_first() -> None:
    tree = Tree()
    tree.add("z/deep/file", b"abc", 0o755)
    tree.link("a", "z")
    tree.device("dev/console", 5, 1)
    found = entries(tree.cpio())
    assert [name for name, _, _ in found] == ["a", "dev", "dev/console", "z", "z/deep", "z/deep/file"]
    assert found[0][1:] == (0o120777, b"z")
    assert found[2][1] == 0o020600
    assert found[5][1:] == (0o100755, b"abc")


def test_archive_does_not_depend_on_the_order_of_adding() -> None:
    one, two = Tree(), Tree()
    for tree, names in ((one, ("b", "a/c")), (two, ("a/c", "b"))):
        for name in names:
            tree.add(name, name.encode())
    assert one.cpio() == two.cpio()


def test_modules_come_after_what_they_depend_on(tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules/6.1/kernel"
    folder.mkdir(parents=True)
    (folder / "top.ko").write_bytes(b"\0depends=middle,built-in\0")
    (folder / "middle.ko.xz").write_bytes(lzma.compress(b"\0depends=base-one\0"))
    (folder / "base-one.ko").write_bytes(b"\0depends=\0")
    found = modules(tmp_path, ["top", "base_one"])
    assert [name for name, _ in found] == ["base_one.ko", "middle.ko", "top.ko"]
    assert found[1][1] == b"\0depends=base-one\0"


def test_kernel_is_named_by_its_meta_package() -> None:
    assert packages.kernel_name("linux-image-6.1.0-9-cloud-amd64 (= 6.1.2-1)") == "linux-image-6.1.0-9-cloud-amd64"
    with pytest.raises(packages.BuildError, match="names no kernel"):
        packages.kernel_name("libc6")


def test_a_failed_command_says_what_it_said() -> None:
    with pytest.raises(packages.BuildError, match="no such thing"):
        packages.run("sh", "-c", "echo no such thing >&2; exit 3")
    with pytest.raises(packages.BuildError, match="make setup"):
        packages.run("holdfast-no-such-program")


def test_the_root_has_the_sources_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = (
        "Debian bookworm http://one/debian/ bookworm main\n"
        "Debian bookworm-security http://two/ bookworm-security main\n"
        "Else bookworm http://three/ stable main\n"
        "Debian trixie http://one/debian/ trixie main\n"
    )
    monkeypatch.setattr(disk, "run", lambda *_: listing)
    assert disk.sources() == "deb http://one/debian/ bookworm main\ndeb http://two/ bookworm-security main\n"
    monkeypatch.setattr(disk, "run", lambda *_: "")
    with pytest.raises(packages.BuildError, match="apt-get update"):
        disk.sources()


@pytest.mark.slow
def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "images.guest.build", "--cache", str(ROOT / "build/debs"), "--out"]
    for name in ("one", "two"):
        subprocess.run([*command, str(tmp_path / name)], check=True, timeout=300, cwd=ROOT)
    for name in ("vmlinuz", "initrd.img", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    manifest = json.loads((tmp_path / "one/manifest.json").read_text())
    initrd = (tmp_path / "one/initrd.img").read_bytes()
    assert manifest["sha256"]["initrd.img"] == hashlib.sha256(initrd).hexdigest()
    served = {name: data for name, _, data in entries(initrd)}["www/blob.bin"]
    assert manifest["sha256"]["/blob.bin"] == hashlib.sha256(served).hexdigest()
