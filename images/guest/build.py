# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds the guest image: Debian's cloud kernel, and an initramfs with redis, HTTP, echo and a control port.

    python -m images.guest.build --out DIR [--cache DIR]

writes DIR/vmlinuz, DIR/initrd.img and DIR/manifest.json. The packages are downloaded with apt and unpacked
into a private root; nothing is installed. The same packages, sources and compiler give the same bytes:
entries are sorted, and every time stamp is SOURCE_DATE_EPOCH (0 when that is not set).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from images import packages, recipe
from images.initramfs import Tree, modules
from images.packages import BuildError, run

HERE = Path(__file__).resolve().parent
MODULES = ("virtio_pci", "virtio_net", "virtio_blk")
APPLETS = ("cat", "echo", "httpd", "insmod", "ip", "mount", "sh")
LIBRARY_DIRS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")


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
    tree.add("etc/network", (HERE / "network").read_bytes())
    tree.add("etc/redis.conf", (HERE / "redis.conf").read_bytes())
    tree.add_modules(modules(root, MODULES))
    tree.add("www/blob.bin", recipe.blob())
    tree.add("www/index.html", b"holdfast guest\n")
    return tree


def build(out: Path, cache: Path) -> None:
    archives = packages.fetch(cache, packages.listed(HERE / "packages.txt"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".work-") as name:
        work = Path(name)
        packages.unpack(archives.values(), work / "root")
        recipe.compile_static(HERE / "guestd.c", work / "guestd")
        kernel = recipe.kernel_of(work / "root")
        initrd = assemble(work / "root", work / "guestd").cpio()
        recipe.put(out / "vmlinuz", kernel.read_bytes())
        recipe.put(out / "initrd.img", initrd)
        manifest = {
            "kernel": kernel.name.removeprefix("vmlinuz-"),
            "append": (HERE / "cmdline").read_text().strip(),
            "sha256": {
                "vmlinuz": recipe.digest(kernel.read_bytes()), "initrd.img": recipe.digest(initrd),
                "/blob.bin": recipe.digest(recipe.blob()),
            },
            "packages": packages.versions(archives),
        }
    recipe.put_manifest(out, manifest)


if __name__ == "__main__":
    sys.exit(recipe.main(build, __doc__.splitlines()[0]))
