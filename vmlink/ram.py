# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest memory: a nameless file in a memory file system, mapped here and by QEMU.

The file has no name from the start (O_TMPFILE), so nothing is left behind however we die. QEMU gets the
descriptor by inheritance and opens it again through /proc/self/fd.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vmlink.errors import VmError

PAGE = 4096
"""Bytes in a guest page, the unit of everything that is copied."""

PageNumbers = np.ndarray[tuple[int], np.dtype[np.int64]]
"""Numbers of guest pages, counted from 0 through the whole memory."""

_MEMORY_FILE_SYSTEMS = ("tmpfs", "hugetlbfs")


class GuestRam:
    """The memory of one VM. `pages` is a writable uint8 view of shape (n, 4096) shared with QEMU."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self.pages: npt.NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8).reshape(-1, PAGE)
        facts = os.fstat(fd)
        self.identity = (facts.st_dev, facts.st_ino)
        """Device and inode number: how the mapping is recognised in /proc/PID/maps."""

    @classmethod
    def create(cls, directory: Path, size: int) -> GuestRam:
        """Reserve `size` bytes in `directory`, all zeros.

        Blocks for about 0.3 s per GiB (every page is allocated now, so that a full host shows here and not as
        a SIGBUS in a running VM): call it in a worker thread.
        Raises VmError: no such directory, not a memory file system, too little room.
        """
        unit = _allocation_unit(directory)
        if size <= 0 or size % unit:
            raise VmError(f"guest memory of {size} bytes is not a multiple of {unit} bytes, the page size of "
                          f"{directory}", "choose a memory size that is a multiple of it")
        _check_room(directory, size)
        try:
            fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            os.posix_fallocate(fd, 0, size)
            return cls(fd, size)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _too_little(directory, size) from error
            raise _unusable(directory, error) from error

    def close(self) -> None:
        """Give the memory back, as soon as no view of `pages` and no QEMU uses it. Idempotent.

        Blocks for about 0.1 s per GiB when nobody else uses it any more.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.pages = np.empty((0, PAGE), dtype=np.uint8)
        try:
            self._map.close()
        except BufferError:
            pass  # someone still looks at a view; the mapping goes with the last of them


def _allocation_unit(directory: Path) -> int:
    """Bytes of a page in `directory`: 4096 on tmpfs, the huge page size on hugetlbfs."""
    try:
        kind = _file_system(directory)
        unit = max(os.statvfs(directory).f_bsize, PAGE)
    except OSError as error:
        raise _unusable(directory, error) from error
    if kind not in _MEMORY_FILE_SYSTEMS:
        raise VmError(f"guest memory must be on tmpfs or hugetlbfs, but {directory} is on {kind}",
                      "set host.ram_dir to /dev/shm or to a hugetlbfs mount")
    return unit


def _file_system(directory: Path) -> str:
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    return "an unknown file system"


def _free(directory: Path) -> int:
    """Bytes that can be had in `directory`: either kind may promise more than the host has."""
    facts = os.statvfs(directory)
    # hugetlbfs without a limit of its own has no size at all.
    promised = facts.f_bavail * facts.f_frsize if facts.f_blocks else None
    if _file_system(directory) == "hugetlbfs":
        pool = Path(f"/sys/kernel/mm/hugepages/hugepages-{facts.f_bsize >> 10}kB/free_hugepages")
        there = int(pool.read_text()) * facts.f_bsize
    else:
        with open("/proc/meminfo", encoding="ascii") as table:
            words = dict(line.split(":", 1) for line in table)
        there = int(words["MemAvailable"].split()[0]) * 1024
    return there if promised is None else min(there, promised)


def _check_room(directory: Path, size: int) -> None:
    if _free(directory) < size:
        raise _too_little(directory, size)


def _too_little(directory: Path, size: int) -> VmError:
    return VmError(
        f"guest memory does not fit in {directory}: needs {size >> 20} MiB, "
        f"{_free(directory) >> 20} MiB are free",
        f"free memory, lower the VM's memory, or make {directory} larger (mount -o remount,size=...)")


def _unusable(directory: Path, error: OSError) -> VmError:
    return VmError(f"cannot create guest memory in {directory}: {error.strerror}",
                   "set host.ram_dir to a directory on tmpfs or hugetlbfs that the service may write to")
