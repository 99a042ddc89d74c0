# SPDX-License-Identifier: GPL-2.0-or-later
"""A real QEMU that exports images and runs nothing, for the tests of what reads and writes them."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

from vmlink.disk.export import Exports
from vmlink.monitor import Monitor
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


@contextlib.asynccontextmanager
async def exporter(socket_path: Path, *arguments: str) -> AsyncIterator[tuple[Exports, Child]]:
    """A QEMU without a machine."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        child = Child.spawn(
            ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S",
             "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control", *arguments],
            pass_fds=[theirs.fileno()])
    state = os.memfd_create("unused", os.MFD_CLOEXEC)
    monitor = None
    try:
        monitor = await Monitor.connect(ours, name="exporter", state_fd=state, process=child, timeout=20)
        yield Exports(monitor, socket_path), child
    finally:
        await child.kill()
        if monitor is not None:
            await monitor.close()
        os.close(state)
