# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells systemd how the service is, as sd_notify(3) does: ready, in one line, alive, stopping.

Datagrams to a socket that is never waited for. Without systemd nothing is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable

LONGEST = 400
"""Characters of a status line."""
log = logging.getLogger("holdfast.notify")


class Notifier:
    """Takes the socket's name out of the environment, so that no process started from here can speak for this one."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        period, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        meant = not pid or pid == str(os.getpid())
        self.watchdog = int(period) / 1e6 if period.isdigit() and meant and address else 0.0
        """Seconds of silence after which systemd takes this service for dead; 0: it does not watch."""
        self._told = ""

    def ready(self) -> None:
        """Everything is armed and served."""
        self._send("READY=1")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """How things are, in one line; nothing is sent for what was told last."""
        text = " ".join(text.split())[:LONGEST]
        if text != self._told:
            self._told = text
            self._send(f"STATUS={text}")

    async def watch(self, trouble: Callable[[], str]) -> None:
        """Say again and again that the service is alive, as long as `trouble` has nothing to tell."""
        before = ""
        while self.watchdog:
            found = trouble()
            if not found:
                self._send("WATCHDOG=1")
            elif found != before:
                log.critical("systemd is not told any more that this service is alive: %s", found)
            before = found
            await asyncio.sleep(self.watchdog / 4)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as end:
            end.sendto(message.encode(), self._address)
