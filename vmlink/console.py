# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM's serial console, kept in a log of bounded size.

QEMU writes to a socket and never waits for us: when nobody reads, it drops. The log keeps the last
0.5 to 1 MiB: when FILE is full it becomes FILE.1 and a new one begins.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from vmlink.errors import VmError

LOG_LIMIT = 512 << 10
"""Bytes of one log file; two are kept."""


class Console:
    """Copies what the VM prints to the log at `path`. Use `open`."""

    def __init__(self, path: Path, fd: int, sock: socket.socket) -> None:
        self.path = path
        self._fd = fd
        self._sock = sock
        self._size = 0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    @classmethod
    def open(cls, path: Path) -> tuple[Console, socket.socket]:
        """Start the log at `path` anew; returns it and the socket for QEMU. Raises VmError."""
        fd = _create(path)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        return cls(path, fd, ours), theirs

    def _readable(self) -> None:
        try:
            data = self._sock.recv(65536)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._sock)
            return
        try:
            os.write(self._fd, data)
            self._size += len(data)
            if self._size >= LOG_LIMIT:
                self._rotate()
        except OSError:
            pass  # a full disk costs the log, not the VM

    def _rotate(self) -> None:
        os.replace(self.path, f"{self.path}.1")
        os.close(self._fd)
        self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        self._size = 0
        full, self._fd = self._fd, _create(self.path)
        os.close(full)

    def close(self) -> None:
        """Stop copying; the log stays. Takes what is still on its way. Idempotent."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._sock)
        self._readable()
        self._sock.close()
        os.close(self._fd)
        self._fd = -1


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise VmError(f"cannot write the console log {path}: {error.strerror}",
                      "host.run_dir must exist and be writable") from error
