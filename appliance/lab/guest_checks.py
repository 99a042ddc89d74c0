# SPDX-License-Identifier: GPL-2.0-or-later
"""The checks inside the disk guest, asked for over its port 10 (images/disk/checkd.c)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from appliance.errors import Unavailable
from appliance.lab import topology
from appliance.lab.lab import Lab

PORT = 10
PATIENCE = 120.0  # seconds; for the longest check on a busy machine
_MOST = 4 << 20  # bytes that a check may print


def run(lab: Lab, words: str, patience: float = PATIENCE) -> tuple[int, str]:
    """Exit status and output of the check that `words` name. Raises OSError, or Unavailable when it breaks off."""
    return ask(_connected(lab, patience), words)


def ask(connection: socket.socket, words: str) -> tuple[int, str]:
    """The same over a connection that is there, which is closed."""
    with connection:
        connection.sendall(f"{words}\n".encode())
        said = bytearray()
        while (more := connection.recv(65536)) and len(said) < _MOST:
            said += more
    printed, end, status = said.decode("utf-8", "replace").rstrip("\n").rpartition("exit ")
    if not end or not status.isdigit():
        raise Unavailable(f"the guest's check {words!r} broke off: {printed[-200:]}", "see the guest's console")
    return int(status), printed


@contextlib.contextmanager
def frozen(lab: Lab) -> Iterator[None]:
    """The guest's root file system holds still for the block, all of it on the disk; a minute at most.

    Raises OSError, or Unavailable when the guest does not do it, or did not hold still to the end.
    """
    with _connected(lab, PATIENCE) as connection, connection.makefile("rb") as said:
        connection.sendall(b"freeze\n")
        if (answer := said.readline()) != b"frozen\n":
            raise Unavailable(f"the guest's file system does not freeze: {answer!r}", "see the guest's console")
        yield
        connection.sendall(b"thaw\n")
        if (answer := said.readline()) != b"exit 0\n":
            raise Unavailable(f"the guest's file system did not stay frozen: {answer!r}", "see the guest's console")


def _connected(lab: Lab, patience: float) -> socket.socket:
    with topology.inside(lab.netns("client")):
        connection = socket.create_connection((topology.VM_IP, PORT), timeout=patience)
    return connection
