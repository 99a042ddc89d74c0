# SPDX-License-Identifier: GPL-2.0-or-later
"""The other process's end of a UNIX socket: how much it may send before this one has to read.

The kernel counts what is under way against the sender's end, and QEMU leaves its own as it is: 208 KiB, so that the two
have to wake each other five times for each MiB that the VM writes. Measured: a third more with ROOM.
"""

from __future__ import annotations

import ctypes
import os
import socket
from pathlib import Path

ROOM = 4 << 20
"""Bytes that may be under way."""
_PIDFD_GETFD = 438  # on every architecture; Linux 5.6
_SO_SNDBUFFORCE = 32  # past net.core.wmem_max, for who may

_libc = ctypes.CDLL(None, use_errno=True)


def widen(pid: int, address: bytes) -> bool:
    """Give every socket of the process `pid` that is connected to `address` (a UNIX socket's name) ROOM bytes. Returns
    whether there was one. Where the kernel does not let us at it: nothing, it is slower then."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        return sum(_widened(process, fd, address) for fd in _sockets(pid)) > 0
    except OSError:  # it has ended, or is none of ours
        return False
    finally:
        os.close(process)


def _sockets(pid: int) -> list[int]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if os.readlink(entry).startswith("socket:"):
                found.append(int(entry.name))
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def _widened(process: int, fd: int, address: bytes) -> bool:
    ours = _libc.syscall(_PIDFD_GETFD, process, fd, 0)
    if ours < 0:
        return False
    with socket.socket(fileno=ours) as far:
        try:
            if far.family != socket.AF_UNIX or far.getpeername() != address:
                return False
            far.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, ROOM)
        except OSError:  # not connected, or not allowed
            return False
    return True
