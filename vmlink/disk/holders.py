# SPDX-License-Identifier: GPL-2.0-or-later
"""Who else has an image open, so that nobody may write to it: asked before QEMU is, whose own words help little.

QEMU (block/file-posix.c) holds open-file-description locks: the byte PERMITTED + n of an image for what it does itself,
FORBIDDEN + n for what nobody else may. Whoever has one of those that we would need is in the way. A block device that
the kernel itself uses (a mounted file system, a RAID) cannot be opened exclusively.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path

from vmlink.disk.spec import DiskSpec
from vmlink.errors import VmError

PERMITTED, FORBIDDEN = 100, 200
WRITE, RESIZE = 1, 3
_LOCKS = (PERMITTED + WRITE, PERMITTED + RESIZE, FORBIDDEN + WRITE, FORBIDDEN + RESIZE)
_FLOCK = struct.Struct("@hhqqi4x")  # struct flock


def refuse_in_use(disk: DiskSpec) -> None:
    """Raises VmError when someone else uses the image. What cannot be opened at all is not told here. Blocks."""
    try:
        facts = os.stat(disk.path)
        exclusive = os.O_EXCL if stat.S_ISBLK(facts.st_mode) else 0
        fd = os.open(disk.path, os.O_RDWR | os.O_CLOEXEC | exclusive)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise VmError(f"{disk}: it is in use: mounted, or a part of another device",
                          f"see lsblk {disk.path} and unmount it; or correct path= of disk {disk.name}") from None
        return
    try:
        taken = any(_taken(fd, byte) for byte in _LOCKS)
    except OSError:
        return  # a file system without locks: QEMU will say what it can do
    finally:
        os.close(fd)
    if taken:
        raise VmError(f"{disk}: it is in use by {_holder(facts) or 'another process (fuser -v shows it)'}",
                      "the image is this VM's alone: end what has it open, qemu-img with -U leaves it alone")


def _taken(fd: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    kind, *_ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
    return bool(kind != fcntl.F_UNLCK)


def _holder(facts: os.stat_result) -> str:
    """The process with such a lock on this file; empty when it does not show, as one on another host does not."""
    file = f" {os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino} "
    for told in Path("/proc").glob("[0-9]*/fdinfo/*"):
        try:
            locks = [line for line in told.read_text().splitlines() if line.startswith("lock:")]
            if any("OFDLCK" in line and file in line for line in locks):
                process = told.parent.parent
                return f"process {process.name} ({(process / 'comm').read_text().strip()})"
        except OSError:
            continue  # it has ended meanwhile
    return ""
