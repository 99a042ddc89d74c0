# SPDX-License-Identifier: GPL-2.0-or-later
"""What the recipes share: their command line, programs compiled for a guest, and outputs that are whole or absent."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from images.packages import BuildError, run

BLOB_BYTES = 1 << 20


def blob() -> bytes:
    """What /blob.bin serves: bytes that no compression or repetition can fake."""
    return b"".join(hashlib.sha256(b"holdfast %d" % i).digest() for i in range(BLOB_BYTES // 32))


def compile_static(source: Path, output: Path) -> None:
    """Compiles a program that runs in any guest."""
    run("gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-s", "-Wl,--build-id=none",
        "-o", output, source)


def kernel_of(root: Path) -> Path:
    """The kernel in an unpacked root. Raises BuildError when there is none."""
    found = next((root / "boot").glob("vmlinuz-*"), None)
    if found is None:
        raise BuildError(f"{root}/boot has no kernel: name a linux-image package in packages.txt")
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(path: Path, data: bytes) -> None:
    """Replaces a file in one step, so that nobody ever boots half an image."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(data)
    fresh.replace(path)


def put_manifest(out: Path, manifest: dict[str, Any]) -> None:
    """The last output: what the image is made of (schema holdfast.image/1)."""
    put(out / "manifest.json", json.dumps({"schema": "holdfast.image/1", **manifest}, indent=2).encode() + b"\n")


def main(build: Callable[[Path, Path], None], about: str) -> int:
    """Runs a recipe from the command line; build(out, cache) makes the image. Returns the exit status."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="downloaded packages (default: OUT/debs)")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.cache or arguments.out / "debs")
    except BuildError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0
