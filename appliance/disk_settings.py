# SPDX-License-Identifier: GPL-2.0-or-later
"""[[vm.NAME.disk]]: the disks of a VM, and what about them cannot work."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from appliance.settings import Bytes, FilePath, Section, says
from appliance.units import format_size

SECTOR = 512
MOST_DISKS = 16
_NAME = re.compile(r"[a-z][a-z0-9]{0,15}")


class Disk(Section, frozen=True, kw_only=True):
    """[[vm.NAME.disk]]: a disk of the VM, with a copy on each host; the VM has them in this order."""

    name: Annotated[str, says("the guest finds it as /dev/disk/by-id/virtio-NAME")]
    path: Annotated[FilePath, says("its image, or a block device; each host has its own")]
    format: Annotated[Literal["raw", "qcow2"], says("of the image")] = "raw"
    size: Annotated[Bytes, says("what the guest sees, to be compared with the image; 0B: whatever that has")] = 0


Fault = tuple[tuple[str | int, ...], str, str]  # where below [vm], cause, remedy


def faults(disks: dict[str, tuple[Disk, ...]]) -> Iterator[Fault]:
    """Everything about the disks of all VMs, by the VM's name, that cannot work. Whether an image is there is not
    looked at: one that is gone concerns its VM alone, and stops it alone."""
    images: dict[object, str] = {}
    for vm, own in disks.items():
        names: set[str] = set()
        if len(own) > MOST_DISKS:
            yield (vm, "disk"), f"{len(own)} disks", f"a VM has {MOST_DISKS} at most"
        for number, disk in enumerate(own):
            at = (vm, "disk", number)
            if not _NAME.fullmatch(disk.name):
                yield (*at, "name"), f"{disk.name!r} is no disk name", "use up to 16 small letters and digits"
            if disk.name in names:
                yield (*at, "name"), f"{disk.name!r} is another disk's name too", "each disk of a VM needs its own"
            names.add(disk.name)
            if disk.size % SECTOR:
                yield (*at, "size"), f"{format_size(disk.size)} is no disk size", f"use a multiple of {SECTOR}B"
            for image in _images(disk.path):
                if image in images:
                    yield (*at, "path"), f"{disk.path} is {images[image]} already", "each disk needs its own image"
                    break
                images[image] = f"disk {disk.name} of VM {vm}"


def claimed(path: Path, disks: Mapping[str, tuple[Disk, ...]]) -> str:
    """Which of these VMs' disks has the image at `path`, by whatever name; empty if none has. Blocks."""
    own = _images(path)
    return next((f"disk {disk.name} of VM {vm}" for vm, others in disks.items() for disk in others
                 if own & _images(disk.path)), "")


def _images(path: Path) -> set[object]:
    """By what this image can be recognised: its path, and the file itself, which may have several."""
    try:
        facts = os.stat(path)
    except OSError:
        return {os.path.realpath(path)}
    file = ("device", facts.st_rdev) if stat.S_ISBLK(facts.st_mode) else (facts.st_dev, facts.st_ino)
    return {os.path.realpath(path), file}
