# SPDX-License-Identifier: GPL-2.0-or-later
"""A disk of a VM: what its image is, checked, and the part of QEMU's command line that makes it."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmlink.disk.record import SECTOR
from vmlink.errors import VmError

NAME = re.compile(r"[a-z][a-z0-9]{0,15}")
_QCOW2 = b"QFI\xfb"
BUS = "disks"
"""The bridge that has all disks: below QEMU's root bus nothing can be plugged in or taken out while a VM runs."""
SLOTS = range(1, 32)
"""The places on it."""

QUEUE = 32
"""Requests that the guest may have under way on one disk. Every pause of the VM has to wait for all of them, and QEMU's
NBD client (7.2) asks us for 16 at a time."""
UNDER_WAY = QUEUE * (1280 << 10)
"""Bytes of them: Linux, for one, makes no request longer than that (BLK_DEF_MAX_SECTORS)."""

RECONNECT = 3
"""Seconds for which QEMU tries to reach us again before a request fails: less than a command to QEMU may take."""


@dataclass(frozen=True)
class DiskSpec:
    """One disk. `path`: an image, or a block device. `format`: raw or qcow2. `size`: what the guest must see, in
    bytes; 0: whatever the image has. `slot`: its place on the bus; 0: any (see `placed`).

    Everything but the path has to be equal on both hosts.
    """

    name: str
    path: Path
    format: str = "raw"
    size: int = 0
    slot: int = 0

    def check(self) -> None:
        """Raises VmError for what cannot work whatever the image is."""
        if not NAME.fullmatch(self.name):
            raise VmError(f"disk name {self.name!r} is not usable", "use up to 16 small letters and digits")
        if self.format not in ("raw", "qcow2"):
            raise VmError(f"disk {self.name}: unknown format {self.format!r}", "use raw or qcow2")

    def look(self) -> int:
        """The size of the image as the guest will see it, in bytes. Blocks for as long as the storage pleases.

        Raises VmError: the image is missing, cannot be used, or is not of the format and size that it must have.
        """
        self.check()
        try:
            facts = os.stat(self.path)
            if not (stat.S_ISREG(facts.st_mode) or stat.S_ISBLK(facts.st_mode)):
                raise VmError(f"{self}: neither a file nor a block device", f"check path= of disk {self.name}")
            fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            try:
                end, head = os.lseek(fd, 0, os.SEEK_END), os.pread(fd, 32, 0)
            finally:
                os.close(fd)
        except OSError as error:
            raise self._unusable(error) from error
        size = self._size(end, head)
        if self.size and size != self.size:
            raise VmError(f"{self}: it has {size} bytes, but size= says {self.size}",
                          "correct size=, or resize the image while the VM runs nowhere")
        return size

    def _size(self, end: int, head: bytes) -> int:
        """Of an image that ends there and begins so: docs/interop/qcow2.txt of QEMU for the header."""
        is_qcow2 = head.startswith(_QCOW2)
        if is_qcow2 is not (self.format == "qcow2"):
            found = "a qcow2 image" if is_qcow2 else "no qcow2 image"
            raise VmError(f"{self}: it is {found}, but format= says {self.format}",
                          f"correct format=, or check path= of disk {self.name}")
        size = int.from_bytes(head[24:32], "big") if is_qcow2 else end
        if size <= 0 or size % SECTOR:
            raise VmError(f"{self}: {size} bytes are no size of a disk", f"use a multiple of {SECTOR} bytes")
        return size

    def _unusable(self, error: OSError) -> VmError:
        if error.errno == errno.ENOENT:
            return VmError(f"{self}: there is no such image",
                           f"make it with the size of the other host's: qemu-img create -f {self.format} {self.path} "
                           f"SIZE, or correct path= of disk {self.name}")
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return VmError(f"{self}: it cannot be written: {error.strerror}", "the service must be able to write it")
        return VmError(f"{self}: {error.strerror}", "look at the storage below it, and at the kernel's log")

    def nodes(self, name: str) -> list[dict[str, object]]:
        """The two block nodes that open the image, the file's first; the second one is called `name`.

        Past the page cache where that works: else every pause of the VM has to wait until all that it wrote since the
        last one is on the storage.
        """
        driver = "host_device" if self.path.is_block_device() else "file"
        past_cache = {"cache": {"direct": True}, "aio": "native"} if self.direct() else {}
        return [{"driver": driver, "node-name": f"{name}-file", "filename": str(self.path), "discard": "unmap",
                 **past_cache},
                {"driver": self.format, "node-name": name, "file": f"{name}-file", "discard": "unmap"}]

    def direct(self) -> bool:
        """Can the image be used past the page cache? tmpfs, for one, cannot everywhere."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def __str__(self) -> str:
        return f"disk {self.name}, {self.path}"


def arguments(disk: DiskSpec, server: str) -> list[str]:
    """QEMU's arguments for `disk`; `server` is the abstract address of the disk server (`vmlink/disk/server.py`).

    The guest sees the quorum, which writes to the image and to us, and reads from the image, or from us where that
    fails. A write that either of them did not take stops the VM: it is kept, and made again when the VM goes on.
    """
    words = [word for node in (*disk.nodes(f"{disk.name}-local"), *joined(disk, server))
             for word in ("-blockdev", json.dumps(node))]  # JSON: a path may hold commas
    return [*words, "-device", ",".join(f"{key}={value}" for key, value in plugged(disk).items())]


def bridge() -> list[str]:
    """QEMU's arguments for the bus that all disks are on. It costs 352 bytes of device state (QEMU 7.2), a root port
    for each disk would cost 4 KiB; the guest hears of changes by ACPI."""
    return ["-device", f"pci-bridge,id={BUS},chassis_nr=1,shpc=off,msi=off"]


def placed(disks: Sequence[DiskSpec]) -> tuple[DiskSpec, ...]:
    """In the order of their places; those that have none get the lowest that are free, in their order.

    Raises VmError when there are too many.
    """
    free = (slot for slot in SLOTS if slot not in {disk.slot for disk in disks})
    try:
        return tuple(sorted((disk if disk.slot else replace(disk, slot=next(free)) for disk in disks),
                            key=lambda disk: disk.slot))
    except (StopIteration, RuntimeError):
        raise VmError(f"{len(disks)} disks", f"a VM has at most {len(SLOTS)}") from None


def joined(disk: DiskSpec, server: str) -> list[dict[str, object]]:
    """The nodes above its image: the link to us, and the quorum that the guest sees."""
    quorum = {"driver": "quorum", "node-name": disk.name, "children": [f"{disk.name}-local", f"{disk.name}-link"],
              "vote-threshold": 2, "read-pattern": "fifo", "discard": "unmap"}
    return [link(disk.name, f"{disk.name}-link", server), quorum]


def plugged(disk: DiskSpec) -> dict[str, object]:
    """The device that shows it to the guest."""
    return {"driver": "virtio-blk-pci", "id": device(disk.name), "bus": BUS, "addr": hex(disk.slot), "drive": disk.name,
            "serial": disk.name, "queue-size": QUEUE, "werror": "stop", "rerror": "stop"}


def link(name: str, node: str, server: str) -> dict[str, object]:
    """The block node `node` that reaches the disk of this name at our server. A connection that breaks is made anew,
    and what was under way is asked again."""
    return {"driver": "nbd", "node-name": node, "export": name, "reconnect-delay": RECONNECT, "discard": "unmap",
            "server": {"type": "unix", "path": server, "abstract": True, "tight": True}}


def device(disk: str) -> str:
    """The name of this disk's device in QEMU."""
    return f"{disk}-dev"
