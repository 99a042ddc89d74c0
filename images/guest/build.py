# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the guest image: Debian's cloud kernel, and an initramfs with redis, HTTP, echo and a control port.

    build.py --out DIR [--cache DIR]

writes DIR/vmlinuz, DIR/initrd.img and DIR/manifest.json. The packages are downloaded with apt and unpacked
into a private root; nothing is installed. The same packages, sources and compiler give the same bytes:
entries are sorted, and every time stamp is SOURCE_DATE_EPOCH (0 when that is not set).

Only the standard library is used: this runs before the project's environment is there.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import os
import re
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
TIMEOUT = 600.0  # seconds, for each command: a download on a slow line is the longest
MODULES = ("virtio_pci", "virtio_net")
APPLETS = ("cat", "echo", "httpd", "insmod", "ip", "mount", "sh")
BLOB_BYTES = 1 << 20
LIBRARY_DIRS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


class BuildError(Exception):
    """The image cannot be built; the message says why and what to do."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a command to its end and returns its output. Raises BuildError with its last words."""
    try:
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT
        )
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed: run `make setup` first") from error
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# --- packages ---------------------------------------------------------------------------------------------


def package_names() -> list[str]:
    lines = (HERE / "packages.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fetch(cache: Path) -> dict[str, Path]:
    """Returns the archive of every package by name, from the cache or else from the distribution."""
    names = package_names()
    cache.mkdir(parents=True, exist_ok=True)
    if any(newest(cache, name) is None for name in with_kernel(cache, names)):
        try:
            download(cache, names)
        except BuildError:
            # No package lists, or lists that are behind the archive.
            run("apt-get", "update")
            download(cache, names)
    found = {name: newest(cache, name) for name in with_kernel(cache, names)}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise BuildError(f"apt-get download gave no {', '.join(missing)}")
    return {name: path for name, path in sorted(found.items()) if path is not None}


def newest(cache: Path, name: str) -> Path | None:
    """The most recently downloaded archive of a package."""
    return max(cache.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime, default=None)


def with_kernel(cache: Path, names: list[str]) -> list[str]:
    """The names, and the kernel that the meta-package (if it is there) stands for."""
    metas = [name for name in names if name.startswith("linux-image-")]
    kernels = []
    for meta in metas:
        if (archive := newest(cache, meta)) is not None:
            kernels.append(kernel_name(run("dpkg-deb", "--field", archive, "Depends")))
    return names + kernels


def kernel_name(depends: str) -> str:
    match = re.search(r"linux-image-[0-9][^ ,]*", depends)
    if match is None:
        raise BuildError(f"the kernel's meta-package names no kernel: {depends.strip()}")
    return match.group()


def download(cache: Path, names: list[str]) -> None:
    fetcher = ("apt-get", "-o", "APT::Sandbox::User=root", "download")
    run(*fetcher, *names, cwd=cache)
    run(*fetcher, *with_kernel(cache, names), cwd=cache)


def unpack(archives: Iterable[Path], root: Path) -> None:
    for archive in archives:
        run("dpkg-deb", "--extract", archive, root)


# --- what goes into the image ------------------------------------------------------------------------------


def libraries(root: Path, program: Path) -> list[Path]:
    """The shared objects a program needs, found in the private root by the private root's own loader."""
    loader = root / "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
    path = ":".join(str(root / folder) for folder in LIBRARY_DIRS)
    listing = run(loader, "--inhibit-cache", "--library-path", path, "--list", program)
    found = [loader]
    for line in listing.splitlines():
        name, arrow, target = line.strip().partition(" => ")
        if not arrow or "ld-linux" in name:
            continue
        if not target.startswith(str(root)):
            raise BuildError(f"{name} is not in the image's packages: add its package to packages.txt")
        found.append(Path(target.split(" (")[0]))
    return found


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


def blob() -> bytes:
    """What /blob.bin serves: bytes that no compression or repetition can fake."""
    return b"".join(hashlib.sha256(b"holdfast %d" % i).digest() for i in range(BLOB_BYTES // 32))


def compile_guestd(output: Path) -> None:
    run("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-Wl,--build-id=none",
        "-o", output, HERE / "guestd.c")


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


def assemble(root: Path, guestd: Path) -> Tree:
    tree = Tree()
    for name in ("proc", "sys", "dev", "tmp"):
        tree.folder(name)
    tree.device("dev/console", 5, 1)
    tree.add("bin/busybox", (root / "bin/busybox").read_bytes(), 0o755)
    for applet in APPLETS:
        tree.link(f"bin/{applet}", "busybox")
    redis = (root / "usr/bin/redis-server").resolve()
    tree.add("bin/redis-server", redis.read_bytes(), 0o755)
    for library in libraries(root, redis):
        tree.add(f"lib/{library.name}", library.read_bytes(), 0o755)
    tree.link("lib64", "lib")
    tree.add("bin/guestd", guestd.read_bytes(), 0o755)
    tree.add("init", (HERE / "init").read_bytes(), 0o755)
    tree.add("etc/redis.conf", (HERE / "redis.conf").read_bytes())
    loaded = modules(root, MODULES)
    for name, data in loaded:
        tree.add(f"modules/{name}", data)
    tree.add("modules/order", "".join(f"{name}\n" for name, _ in loaded).encode())
    tree.add("www/blob.bin", blob())
    tree.add("www/index.html", b"holdfast guest\n")
    return tree


# --- putting it together -----------------------------------------------------------------------------------


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(path: Path, data: bytes) -> None:
    """Replaces a file in one step, so that nobody ever boots half an image."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)


def build(out: Path, cache: Path) -> None:
    archives = fetch(cache)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".work-") as name:
        work = Path(name)
        unpack(archives.values(), work / "root")
        compile_guestd(work / "guestd")
        kernel = next((work / "root/boot").glob("vmlinuz-*"))
        initrd = assemble(work / "root", work / "guestd").cpio()
        put(out / "vmlinuz", kernel.read_bytes())
        put(out / "initrd.img", initrd)
        manifest = {
            "schema": "holdfast.image/1",
            "kernel": kernel.name.removeprefix("vmlinuz-"),
            "append": (HERE / "cmdline").read_text().strip(),
            "sha256": {
                "vmlinuz": digest(kernel.read_bytes()), "initrd.img": digest(initrd), "/blob.bin": digest(blob()),
            },
            "packages": {name: path.name.split("_")[1].replace("%3a", ":") for name, path in archives.items()},
        }
    put(out / "manifest.json", json.dumps(manifest, indent=2).encode() + b"\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="downloaded packages (default: OUT/debs)")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.cache or arguments.out / "debs")
    except BuildError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
