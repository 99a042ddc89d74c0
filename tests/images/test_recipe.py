# SPDX-License-Identifier: GPL-2.0-or-later
"""The image's recipe: archives in a fixed form, modules in an order that loads, the same bytes twice."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "images/guest/build.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guest_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_archive_is_sorted_and_folders_come_first(recipe: ModuleType) -> None:
    tree = recipe.Tree()
    tree.add("z/deep/file", b"abc", 0o755)
    tree.link("a", "z")
    tree.device("dev/console", 5, 1)
    found = entries(tree.cpio())
    assert [name for name, _, _ in found] == ["a", "dev", "dev/console", "z", "z/deep", "z/deep/file"]
    assert found[0][1:] == (0o120777, b"z")
    assert found[2][1] == 0o020600
    assert found[5][1:] == (0o100755, b"abc")


def test_archive_does_not_depend_on_the_order_of_adding(recipe: ModuleType) -> None:
    one, two = recipe.Tree(), recipe.Tree()
    for tree, names in ((one, ("b", "a/c")), (two, ("a/c", "b"))):
        for name in names:
            tree.add(name, name.encode())
    assert one.cpio() == two.cpio()


def test_modules_come_after_what_they_depend_on(recipe: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "lib/modules/6.1/kernel"
    folder.mkdir(parents=True)
    (folder / "top.ko").write_bytes(b"\0depends=middle,built-in\0")
    (folder / "middle.ko.xz").write_bytes(lzma.compress(b"\0depends=base-one\0"))
    (folder / "base-one.ko").write_bytes(b"\0depends=\0")
    found = recipe.modules(tmp_path, ["top", "base_one"])
    assert [name for name, _ in found] == ["base_one.ko", "middle.ko", "top.ko"]
    assert found[1][1] == b"\0depends=base-one\0"


def test_kernel_is_named_by_its_meta_package(recipe: ModuleType) -> None:
    assert recipe.kernel_name("linux-image-6.1.0-9-cloud-amd64 (= 6.1.2-1)") == "linux-image-6.1.0-9-cloud-amd64"
    with pytest.raises(recipe.BuildError, match="names no kernel"):
        recipe.kernel_name("libc6")


def test_a_failed_command_says_what_it_said(recipe: ModuleType) -> None:
    with pytest.raises(recipe.BuildError, match="no such thing"):
        recipe.run("sh", "-c", "echo no such thing >&2; exit 3")
    with pytest.raises(recipe.BuildError, match="make setup"):
        recipe.run("holdfast-no-such-program")


@pytest.mark.slow
def test_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    command = [sys.executable, str(RECIPE), "--cache", str(ROOT / "build/debs"), "--out"]
    for name in ("one", "two"):
        subprocess.run([*command, str(tmp_path / name)], check=True, timeout=300)
    for name in ("vmlinuz", "initrd.img", "manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    manifest = json.loads((tmp_path / "one/manifest.json").read_text())
    initrd = (tmp_path / "one/initrd.img").read_bytes()
    assert manifest["sha256"]["initrd.img"] == hashlib.sha256(initrd).hexdigest()
    served = {name: data for name, _, data in entries(initrd)}["www/blob.bin"]
    assert manifest["sha256"]["/blob.bin"] == hashlib.sha256(served).hexdigest()
