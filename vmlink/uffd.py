# SPDX-License-Identifier: GPL-2.0-or-later
"""Write tracking by the kernel: userfaultfd write-protection, read with PAGEMAP_SCAN.

Guest memory in QEMU's process is write-protected; the kernel lifts the protection of a page when it is
written (WP_ASYNC: nobody is woken) and thereby marks it. One PAGEMAP_SCAN reports the marked pages and
protects them again. Needs Linux 6.7, and a userfaultfd that was made in QEMU's process (shim.c).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vmlink.errors import VmError
from vmlink.ram import PAGE, GuestRam, PageNumbers

_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_UFFDIO_WRITEPROTECT = 0xC018AA06
_REGISTER_MODE_WP = 2
_WRITEPROTECT_MODE_WP = 1

_PAGEMAP_SCAN = 0xC0606610
_SCAN_ARGUMENT = struct.Struct("=12Q")
_WALK_END = 4
"""Which of the fields holds the address where the scan stopped."""
_PM_SCAN_WP_MATCHING = 1
_PM_SCAN_CHECK_WPASYNC = 2
_PAGE_IS_WRITTEN = 2

REGIONS = 65536
"""Runs of dirty pages one system call may report; when there are more, the next call goes on from there."""


@dataclass(frozen=True)
class Mapping:
    """Guest memory from byte `offset` on, in QEMU's address space from `start` to `end`."""

    start: int
    end: int
    offset: int


class UffdTracker:
    """Tracks the writes of process `pid` to its mapping of `ram`. Keeps a copy of `userfaultfd` of its own.

    Making it is quick; tracking begins with `arm`. Raises VmError when the kernel, the process or the
    descriptor is not up to it.
    """

    name = "uffd-wp"

    def __init__(self, pid: int, userfaultfd: int, ram: GuestRam, reason: str = "", *,
                 regions: int = REGIONS) -> None:
        self.reason = reason or "the kernel tracks writes"
        self.source: npt.NDArray[np.uint8] = ram.pages
        self._mappings = find_mappings(pid, ram.identity)
        if sum(mapping.end - mapping.start for mapping in self._mappings) != ram.size:
            raise VmError(f"process {pid} does not map all of the guest memory once")
        self._vector = np.zeros((regions, 3), dtype=np.uint64)
        try:
            self._pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise VmError(f"cannot read the page map of process {pid}: {error.strerror}") from error
        self._uffd = os.dup(userfaultfd)
        try:
            self._register()
            first = self._mappings[0]
            self._scan(Mapping(first.start, first.start + PAGE, first.offset))  # is PAGEMAP_SCAN there?
        except BaseException:
            self.close()
            raise

    def _register(self) -> None:
        for mapping in self._mappings:
            request = struct.pack("=4Q", mapping.start, mapping.end - mapping.start, _REGISTER_MODE_WP, 0)
            self._ioctl(self._uffd, _UFFDIO_REGISTER, bytearray(request), "guest memory cannot be watched")

    def arm(self) -> None:
        """See Tracker.arm. The first time the kernel fills page tables, which takes some 20 ms per GiB."""
        for mapping in self._mappings:
            request = struct.pack("=3Q", mapping.start, mapping.end - mapping.start, _WRITEPROTECT_MODE_WP)
            self._ioctl(self._uffd, _UFFDIO_WRITEPROTECT, bytearray(request),
                        "guest memory cannot be protected")

    def collect(self) -> PageNumbers:
        """See Tracker.collect: some 0.5 ms per GiB, and 0.1 us per dirty page."""
        found = [pages for mapping in self._mappings for pages in self._scan(mapping)]
        # A scan of a dead process finds nothing and calls that success. Reading the page map tells the two
        # apart: as long as it gives anything, the memory was all there during the scan.
        if len(os.pread(self._pagemap, 8, self._mappings[0].start // PAGE * 8)) != 8:
            raise VmError("written pages cannot be read: QEMU is gone")
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _scan(self, mapping: Mapping) -> list[PageNumbers]:
        found, at = [], mapping.start
        while at < mapping.end:
            argument = bytearray(_SCAN_ARGUMENT.pack(
                _SCAN_ARGUMENT.size, _PM_SCAN_WP_MATCHING | _PM_SCAN_CHECK_WPASYNC, at, mapping.end, 0,
                self._vector.ctypes.data, len(self._vector), 0, 0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN))
            count = self._ioctl(self._pagemap, _PAGEMAP_SCAN, argument, "written pages cannot be read")
            if count:
                found.append(_expand(self._vector[:count], mapping))
            # It stops early only for want of room. When it had room, "where it stopped" may be stale: kernels
            # up to 6.18 leave there the last point where they emptied an internal buffer.
            if count < len(self._vector):
                break
            walked = _SCAN_ARGUMENT.unpack(argument)[_WALK_END]
            if walked <= at:
                raise VmError(f"written pages cannot be read: the scan stands still at {at:#x}")
            at = walked
        return found

    def _ioctl(self, fd: int, request: int, argument: bytearray, failure: str) -> int:
        try:
            return int(fcntl.ioctl(fd, request, argument))
        except OSError as error:
            causes = {errno.ENOTTY: "the kernel has no PAGEMAP_SCAN (Linux 6.7 has)",
                      errno.ESRCH: "QEMU is gone",
                      errno.EPERM: "guest memory is not under asynchronous write-protection"}
            raise VmError(f"{failure}: {causes.get(error.errno or 0, error.strerror)}") from error

    def close(self) -> None:
        """Lift the protection. Idempotent; a QEMU that is gone is no error."""
        if self._pagemap < 0:
            return
        for mapping in self._mappings:
            try:
                fcntl.ioctl(self._uffd, _UFFDIO_UNREGISTER,
                            struct.pack("=2Q", mapping.start, mapping.end - mapping.start))
            except OSError:
                break
        os.close(self._pagemap)
        os.close(self._uffd)
        self._pagemap = self._uffd = -1
        self.source = np.empty((0, PAGE), dtype=np.uint8)  # a view that lives on would keep the memory


def find_mappings(pid: int, identity: tuple[int, int]) -> list[Mapping]:
    """Where process `pid` maps the file with this device and inode number, by offset. Raises VmError."""
    device, inode = identity
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}"
    found: list[Mapping] = []
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                span, _, offset, where, number = line.split(maxsplit=5)[:5]
                if where == wanted and int(number) == inode:
                    start, end = (int(part, 16) for part in span.split("-"))
                    found.append(Mapping(start, end, int(offset, 16)))
    except OSError as error:
        raise VmError(f"cannot read the memory map of process {pid}: {error.strerror}") from error
    return sorted(found, key=lambda mapping: mapping.offset)


def _expand(regions: npt.NDArray[np.uint64], mapping: Mapping) -> PageNumbers:
    """Runs (start, end, ...) of addresses as single page numbers of the guest memory."""
    shift = np.uint64(mapping.start - mapping.offset)
    edges = ((regions[:, :2] - shift) // np.uint64(PAGE)).astype(np.int64)
    lengths = edges[:, 1] - edges[:, 0]
    before = np.cumsum(lengths) - lengths
    return np.repeat(edges[:, 0] - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)
