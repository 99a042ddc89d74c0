# SPDX-License-Identifier: GPL-2.0-or-later
"""An initramfs: files by path, kernel modules in an order that loads, written as a sorted newc archive.

Every time stamp is SOURCE_DATE_EPOCH (0 when that is not set), so that the same files give the same bytes.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

from images.packages import TIMEOUT

EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def module_bytes(path: Path) -> bytes:
    """A kernel module as the kernel wants it, however the distribution packs it."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dc"], input=data, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT).stdout
    return data


def modules(root: Path, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """The wanted modules and what they depend on, in the order in which they can be loaded.

    A module that is not there is built into the kernel.
    """
    files = {path.name.split(".")[0].replace("-", "_"): path for path in (root / "lib/modules").rglob("*.ko*")}
    ordered: dict[str, bytes] = {}

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in ordered or name not in files:
            return
        data = module_bytes(files[name])
        depends = re.search(rb"\0depends=([^\0]*)\0", data)
        for dependency in (depends.group(1).decode().split(",") if depends else []):
            add(dependency)
        ordered[name] = data

    for name in wanted:
        add(name)
    return [(f"{name}.ko", data) for name, data in ordered.items()]


class Tree:
    """The files of the initramfs by path, written as a sorted newc archive."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def folder(self, path: str) -> None:
        if path and path not in self.entries:
            self.folder(path.rpartition("/")[0])
            self.entries[path] = (stat.S_IFDIR | 0o755, b"", (0, 0))

    def add(self, path: str, data: bytes, mode: int = 0o644, kind: int = stat.S_IFREG) -> None:
        self.folder(path.rpartition("/")[0])
        self.entries[path] = (kind | mode, data, (0, 0))

    def link(self, path: str, target: str) -> None:
        self.add(path, target.encode(), 0o777, stat.S_IFLNK)

    def device(self, path: str, major: int, minor: int) -> None:
        self.folder(path.rpartition("/")[0])
        self.entries[path] = (stat.S_IFCHR | 0o600, b"", (major, minor))

    def add_modules(self, loaded: list[tuple[str, bytes]]) -> None:
        """Kernel modules below /modules; /modules/order names them in the order in which they can be loaded."""
        for name, data in loaded:
            self.add(f"modules/{name}", data)
        self.add("modules/order", "".join(f"{name}\n" for name, _ in loaded).encode())

    def cpio(self) -> bytes:
        out = bytearray()
        for inode, (path, (mode, data, device)) in enumerate(sorted(self.entries.items()), 1):
            out += record(path, inode, mode, data, device)
        return bytes(out + record("TRAILER!!!", 0, 0, b"", (0, 0)))


def record(path: str, inode: int, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    """One entry of a newc archive: the header in hexadecimal, the name, the data, each padded to 4 bytes."""
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (inode, mode, 0, 0, links, EPOCH, len(data), 0, 0, *device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
