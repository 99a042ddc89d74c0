# SPDX-License-Identifier: GPL-2.0-or-later
"""Carrier of network devices: asked for directly, and a wake-up from the kernel when one may have changed.

The kernel batches its link events, up to a second apart for a carrier that goes (net/core/link_watch.c), so
an event is only a reason to ask; the answer comes from ETHTOOL_GLINK, which reads the carrier itself. That takes 2 us,
but it waits for the kernel's one lock for all network configuration: 30 ms and more where somebody else configures.
So it is asked only when the device's count of carrier changes, which no lock guards, has moved, and every few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

_RTMGRP_LINK = 1
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A
AGAIN = 5.0
"""Seconds after which the kernel is asked although nothing was counted."""


class CarrierWatch:
    """Calls `changed()` when the carrier of any device in this network namespace may have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._events.bind((0, _RTMGRP_LINK))
        self._ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._value = ctypes.create_string_buffer(8)
        self._counters: dict[str, int | None] = {}
        self._known: dict[str, tuple[bytes, bool, float]] = {}
        asyncio.get_running_loop().add_reader(self._events, self._read)

    def _read(self) -> None:
        try:
            while self._events.recv(65536):
                pass
        except OSError:  # all read, or an overrun: a reason to ask all the same
            pass
        self._counters = {name: counter for name, counter in self._counters.items() if counter is not None}
        self._changed()

    def carrier(self, interface: str) -> bool:
        """Is the device up, with a carrier? False for one that does not exist."""
        now, count = time.monotonic(), self._count(interface)
        before, carrier, asked = self._known.get(interface, (b"", False, 0.0))
        if not count or count != before or now - asked >= AGAIN:
            carrier = self._glink(interface)
            self._known[interface] = count, carrier, now  # counted before it was asked: a change is never missed
        return carrier

    def _glink(self, interface: str) -> bool:
        struct.pack_into("=II", self._value, 0, _ETHTOOL_GLINK, 0)
        request = struct.pack("16sP", interface.encode(), ctypes.addressof(self._value))
        try:
            fcntl.ioctl(self._ask, _SIOCETHTOOL, request)
        except OSError:
            return False
        return bool(struct.unpack_from("=II", self._value)[1])

    def _count(self, interface: str) -> bytes:
        """How often its carrier has changed; empty when that cannot be told."""
        if interface not in self._counters:
            self._counters[interface] = _open_counter(interface)
        counter = self._counters[interface]
        if counter is None:
            return b""
        try:
            return os.pread(counter, 32, 0)
        except OSError:  # the device is gone
            os.close(counter)
            self._counters[interface] = None
            return b""

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._events)
        self._events.close()
        self._ask.close()
        for counter in self._counters.values():
            if counter is not None:
                os.close(counter)


def _open_counter(interface: str) -> int | None:
    """None when /sys has no such device, or shows another namespace than that of this thread."""
    device = Path("/sys/class/net") / interface
    with contextlib.suppress(OSError, ValueError):
        if int((device / "ifindex").read_text()) == socket.if_nametoindex(interface):
            return os.open(device / "carrier_changes", os.O_RDONLY | os.O_CLOEXEC)
    return None
