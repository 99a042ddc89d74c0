# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU that exports images and runs nothing, for the tests of what reads and writes them."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from vmlink.disk.export import Exports
from vmlink.disk.exporter import exporting
from vmlink.process import Child

MIB = 1 << 20


def make_image(path: Path, size: int, form: str = "raw") -> Path:
    """An image full of holes."""
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, str(size)], check=True, timeout=20)
    return path


def nodes(path: Path, form: str = "raw", name: str = "image") -> list[dict[str, object]]:
    """What opens the image: its file, and its format on top."""
    return [{"driver": "file", "filename": str(path), "node-name": f"{name}-file", "discard": "unmap"},
            {"driver": form, "file": f"{name}-file", "node-name": name, "discard": "unmap"}]


def exporter(socket_path: Path) -> contextlib.AbstractAsyncContextManager[tuple[Exports, Child]]:
    """A QEMU without a machine."""
    return exporting("qemu-system-x86_64", socket_path)
