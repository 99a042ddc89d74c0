# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest image with raw disks, in a network of its own, and what it is asked to do with them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.tap import open_tap
from tests.images.conftest import inside
from tests.vmlink.machine import SHM, booted, guest_spec
from vmlink.disk.drive import Drives
from vmlink.disk.spec import DiskSpec
from vmlink.qemu import Qemu
from vmlink.ram import GuestRam

MIB = 1 << 20
CONTROL = 9
_numbers = itertools.count()


@dataclass
class DiskGuest:
    """A running VM with disks."""

    qemu: Qemu
    ram: GuestRam
    drives: Drives
    namespace: str

    async def ask(self, line: str, timeout: float = 30.0) -> str:
        """What the guest answers. Raises TimeoutError."""
        with inside(self.namespace):
            sock = socket.socket()
        with sock:
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, ("10.77.0.10", CONTROL))
                await loop.sock_sendall(sock, line.encode() + b"\n")
                return (await loop.sock_recv(sock, 200)).decode().strip()


def make_image(path: Path, size: int, form: str = "raw") -> DiskSpec:
    """An empty image; the disk has the name of the file."""
    subprocess.run(["qemu-img", "create", "-q", "-f", form, path, str(size)], check=True, timeout=20)
    return DiskSpec(path.stem, path, form)


@contextlib.asynccontextmanager
async def started(run_dir: Path, disks: Sequence[DiskSpec], *, incoming: bool = False, limit: int = 32 * MIB,
                  extra: tuple[str, ...] = ()) -> AsyncIterator[DiskGuest]:
    """A started QEMU with these disks; all of it is gone afterwards."""
    name = f"hfdk{os.getpid() % 100000}x{next(_numbers)}"
    _ip("netns", "add", name)
    try:
        with inside(name):
            tap = open_tap("tap0")
        try:
            for words in ("addr add 10.77.0.1/24 dev tap0", "link set tap0 up"):
                _ip("-n", name, *words.split())
            async with _machine(run_dir, disks, tap, incoming, limit, extra) as (qemu, ram, drives):
                yield DiskGuest(qemu, ram, drives, name)
        finally:
            os.close(tap)
    finally:
        _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20)


@contextlib.asynccontextmanager
async def _machine(run_dir: Path, disks: Sequence[DiskSpec], tap: int, incoming: bool, limit: int,
                   extra: tuple[str, ...]) -> AsyncIterator[tuple[Qemu, GuestRam, Drives]]:
    vm = guest_spec(disks=tuple(disks), extra_args=extra)
    drives = await Drives.open(disks, limit)
    ram = GuestRam.create(SHM, vm.memory_bytes)
    try:
        qemu = await Qemu.start(vm, ram, tap_fd=tap, incoming=incoming, run_dir=run_dir, drives=drives)
        try:
            if not incoming:
                await booted(qemu)
            yield qemu, ram, drives
        finally:
            await qemu.kill()
    finally:
        drives.close()
        ram.close()
