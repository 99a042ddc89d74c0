# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU without a machine: opens images and exports them, where no VM's QEMU may or can."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from vmlink.disk.export import Exports
from vmlink.disk.images import Images
from vmlink.disk.spec import DiskSpec
from vmlink.disk.store import Store
from vmlink.errors import VmError
from vmlink.monitor import Monitor
from vmlink.process import Child

TIMEOUT = 10.0
"""Seconds until it has to answer."""


@contextlib.asynccontextmanager
async def exporting(program: str, path: Path, *, environment: Mapping[str, str] | None = None,
                    pass_fds: Sequence[int] = ()) -> AsyncIterator[tuple[Exports, Child]]:
    """Start `program`, a QEMU, with a socket for exports at `path`; it has ended afterwards. Main thread only.
    `environment` is added to ours, `pass_fds` are inherited.

    Raises VmError.
    """
    async with contextlib.AsyncExitStack() as undo:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        undo.callback(ours.close)
        with theirs:
            child = Child.spawn([program, "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
                                 "-S", "-chardev", f"socket,id=qmp,fd={theirs.fileno()}",
                                 "-mon", "chardev=qmp,mode=control"], pass_fds=[theirs.fileno(), *pass_fds],
                                environment=environment)
        undo.push_async_callback(child.kill)
        no_state = os.memfd_create("holdfast-no-device-state", os.MFD_CLOEXEC)
        undo.callback(os.close, no_state)
        monitor = await Monitor.connect(ours, name="disks", state_fd=no_state, process=child, timeout=TIMEOUT)
        undo.push_async_callback(monitor.close)
        exports = Exports(monitor, path)
        undo.callback(exports.close)
        yield exports, child


def connected(exports: Exports, disks: Sequence[DiskSpec]) -> list[Store]:
    """A store for each disk. Blocks; for the thread that uses them. Raises VmError."""
    stores: list[Store] = []
    try:
        for disk in disks:
            stores.append(Store(disk.name))
            stores[-1].connect(exports.path, disk.name)
    except VmError:
        for store in stores:
            store.close()
        raise
    return stores


async def offer(exports: Exports, disks: Sequence[DiskSpec]) -> None:
    """Open the images of these disks, beside whatever else the QEMU has of them, and export them. Raises VmError."""
    for disk in disks:
        await exports.image(disk.name, disk.nodes(f"{disk.name}-replica"))


def replay(images: Images, exports: Exports, disks: Sequence[DiskSpec]) -> None:
    """Bring what the journal holds into the images. Blocks. Raises VmError."""
    stores = connected(exports, disks)
    try:
        images.replay(stores)
    finally:
        for store in stores:
            store.close()
