# SPDX-License-Identifier: GPL-2.0-or-later
"""Which pages of guest memory were written: the trackers' common interface, the choice, and the fallback.

Copy the pages that `collect` names from the tracker's `source`, not from RAM. With the comparing tracker they
differ while the VM runs: a page that changes after the comparison and changes back before the next one
would look clean, although what was copied in between is neither.
"""

from __future__ import annotations

import ctypes
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vmlink.errors import VmError
from vmlink.ram import PAGE, GuestRam, PageNumbers
from vmlink.uffd import UffdTracker

_CHUNK = 256
"""Pages compared in one step: 1 MiB runs at memory speed and still skips most of what is equal."""

_libc = ctypes.CDLL(None)
_libc.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcmp.restype = ctypes.c_int


class Tracked(Protocol):
    """What a tracker needs to know of a QEMU."""

    pid: int
    userfaultfd: int | None
    no_userfaultfd: str


class Tracker(Protocol):
    """Reports the written pages of one VM. All calls block: make them in a worker thread, one at a time."""

    name: str
    reason: str
    """Why this one is in use."""
    source: npt.NDArray[np.uint8]
    """Where to copy reported pages from, uint8 (n, 4096)."""

    def arm(self) -> None:
        """Everything counts as clean from now on. Raises VmError."""

    def collect(self) -> PageNumbers:
        """Numbers of the pages written since the last `collect` or `arm`, sorted, each once. Raises VmError.

        Without an `arm` before, nothing is tracked.

        While the VM runs, a page written during the call is in this answer or in the next one.
        """

    def close(self) -> None:
        """Stop tracking. Idempotent."""


class CompareTracker:
    """Compares RAM with a copy of its own. Works everywhere; costs the memory again, and a read of it all."""

    name = "compare"

    def __init__(self, ram: GuestRam, reason: str = "configured") -> None:
        self.reason = reason
        self._ram = ram.pages
        self.source: npt.NDArray[np.uint8] = np.empty_like(ram.pages)

    def arm(self) -> None:
        """Take the copy: 0.3 s per GiB."""
        np.copyto(self.source, self._ram)

    def collect(self) -> PageNumbers:
        """See Tracker.collect: 0.2 s per GiB."""
        found = []
        ram, copy = self._ram, self.source
        for first in range(0, len(ram), _CHUNK):
            now, then = ram[first:first + _CHUNK], copy[first:first + _CHUNK]
            # memcmp lets go of the interpreter lock and takes no room, unlike a comparison of arrays.
            if _libc.memcmp(now.ctypes.data, then.ctypes.data, now.nbytes):
                different = (now.view(np.uint64) != then.view(np.uint64)).any(axis=1)
                changed = np.flatnonzero(different).astype(np.int64)
                then[changed] = now[changed]
                found.append(changed + first)
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def close(self) -> None:
        """Give the copy back. Idempotent."""
        self.source = np.empty((0, PAGE), dtype=np.uint8)
        self._ram = self.source


def choose(qemu: Tracked, ram: GuestRam, prefer: str = "auto") -> Tracker:
    """The best tracker that works for this QEMU: "auto", or "uffd-wp" or "compare" and no other. Quick.

    Raises VmError when the wanted one does not work here.
    """
    if prefer not in ("auto", UffdTracker.name, CompareTracker.name):
        raise VmError(f"unknown tracker {prefer!r}", "use auto, uffd-wp or compare")
    if prefer == CompareTracker.name:
        return CompareTracker(ram)
    try:
        if qemu.userfaultfd is None:
            raise VmError(qemu.no_userfaultfd)
        return UffdTracker(qemu.pid, qemu.userfaultfd, ram)
    except VmError as error:
        if prefer == UffdTracker.name:
            raise VmError(f"tracker uffd-wp does not work here: {error.message}",
                          "use tracker = \"auto\", a kernel from 6.7 on, and `make shim`") from error
        return CompareTracker(ram, f"no uffd-wp: {error.message}")
