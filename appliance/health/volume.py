# SPDX-License-Identifier: GPL-2.0-or-later
"""What is found out about one directory or file by using it. Blocks, for as long as a broken disk pleases."""

from __future__ import annotations

import errno
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from appliance.health import kernel_files

SIZE = 4096
"""Bytes written, and forced to the disk, each time."""
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)
"""What file systems and kernels without O_TMPFILE answer."""


@dataclass(frozen=True)
class Found:
    """seconds: what the write (or the look at a file) took. free, size: bytes of the file system.

    error: what went wrong, "" if nothing. errors: what the kernel counted on the device; None without a counter.
    """

    seconds: float
    free: int = 0
    size: int = 0
    read_only: bool = False
    error: str = ""
    errors: int | None = None


def use_directory(path: Path, *, sys: Path = Path("/sys")) -> Found:
    """Write a little to a new file of the directory, force it to the disk, remove it."""
    begun = time.monotonic()
    space, error = None, ""
    try:
        space = os.statvfs(path)
        if not space.f_flag & os.ST_RDONLY:
            _write(path)
    except OSError as failure:
        error = failure.strerror or str(failure)
    seconds = time.monotonic() - begun
    if space is None:
        return Found(seconds, error=error)
    read_only = bool(space.f_flag & os.ST_RDONLY)
    return Found(seconds, space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize, read_only, error,
                 device_errors(path, sys=sys))


def use_file(path: Path) -> Found:
    """Read the beginning of a file that a VM needs."""
    begun = time.monotonic()
    try:
        with open(path, "rb", buffering=0) as file:
            file.read(SIZE)
        error = ""
    except OSError as failure:
        error = failure.strerror or str(failure)
    return Found(time.monotonic() - begun, error=error)


def _write(path: Path) -> None:
    flags = os.O_WRONLY | os.O_CLOEXEC
    try:
        descriptor = os.open(path, os.O_TMPFILE | flags, 0o600)  # no name: nothing is left behind however this ends
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
        descriptor, name = tempfile.mkstemp(prefix=".holdfast-health-", dir=path)
        os.unlink(name)
    try:
        os.write(descriptor, bytes(SIZE))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def device_errors(path: Path, *, sys: Path = Path("/sys")) -> int | None:
    """What the file system and the device below it count as errors; None where neither counts."""
    number = os.stat(path).st_dev
    device = sys / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    try:
        device = device.resolve(strict=True)
    except OSError:
        return None  # tmpfs, NFS: no block device
    counters = [sys / "fs" / "ext4" / device.name / "errors_count", device / "device" / "ioerr_cnt",
                device.parent / "device" / "ioerr_cnt"]
    return kernel_files.total(counters)
