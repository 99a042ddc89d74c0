# SPDX-License-Identifier: GPL-2.0-or-later
"""The service's hand on a QEMU that writes to shared volumes: the kernel ends it when its lease does (vmlink/lease.c).

Invariant (one writer): from the moment on at which the lease ends nothing is written any more that was asked for
before: the timer is set before a write is asked for, and taken away after its answer.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from vmlink.errors import VmError

ANSWER_TIMEOUT = 1.0
"""Seconds in which the timer has to be set."""
_ORDER = struct.Struct("=QQ")


def shim_path() -> Path:
    """Where the library is that QEMU loads: $HOLDFAST_LEASE_SHIM, build/shim beside the package, or the installed one.
    Raises VmError."""
    configured = os.environ.get("HOLDFAST_LEASE_SHIM")
    candidates = [Path(configured)] if configured else [
        Path(__file__).resolve().parent.parent.parent / "build/shim/holdfast-lease.so",
        Path("/usr/lib/holdfast/holdfast-lease.so"),
    ]
    for path in candidates:
        if path.is_file():
            return path
    raise VmError(f"there is no {candidates[0]}", "make shim builds it: without it nobody may write to a shared volume")


class LeaseOver(VmError):
    """Nothing was asked for: the lease of this host is over."""


class Lease:
    """See the module. `theirs` is for QEMU to inherit; close it then."""

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setblocking(False)  # the lock is the event loop's too: nothing waits that has it
        self._lock = threading.Lock()
        self._under_way = False
        self._until = 0.0

    def environment(self) -> dict[str, str]:
        """Of that QEMU. Raises VmError when there is no shim."""
        return {"LD_PRELOAD": str(shim_path()), "HOLDFAST_LEASE_FD": str(self.theirs.fileno())}

    def close(self) -> None:
        self._ours.close()
        self.theirs.close()

    def renew(self, until: float) -> None:
        """It ends at that moment (monotonic seconds). Never waits: a renewal that is lost ends QEMU, no more."""
        with self._lock:
            self._until = until
            if self._under_way:
                with contextlib.suppress(OSError):
                    self._ours.send(_ORDER.pack(max(1, int(until * 1e9)), 0), socket.MSG_NOSIGNAL)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """The block may ask QEMU to write. In a worker thread. Raises LeaseOver, or VmError when QEMU is gone."""
        with self._lock:
            if self._until <= time.monotonic():
                raise LeaseOver("the lease of this host is over")
            try:
                self._ours.send(_ORDER.pack(int(self._until * 1e9), 1), socket.MSG_NOSIGNAL)
            except OSError as error:
                raise VmError(f"the QEMU that writes to the volumes does not answer: {error}") from error
            self._under_way = True
        self._answered()
        yield  # what fails within leaves the timer set: the QEMU is ended anyway
        with self._lock:
            self._under_way = False
            try:
                self._ours.send(_ORDER.pack(0, 0), socket.MSG_NOSIGNAL)
            except OSError as error:
                raise VmError(f"the QEMU that writes to the volumes is gone: {error}") from error

    def _answered(self) -> None:
        """Wait until the timer is set. Raises VmError."""
        waiting = select.poll()
        waiting.register(self._ours, select.POLLIN)
        try:
            if not waiting.poll(ANSWER_TIMEOUT * 1e3):
                raise VmError(f"the QEMU that writes to the volumes did not answer within {ANSWER_TIMEOUT:g} s")
            if not self._ours.recv(_ORDER.size):
                raise VmError("the QEMU that writes to the volumes is gone")
        except OSError as error:
            raise VmError(f"the QEMU that writes to the volumes does not answer: {error}") from error
