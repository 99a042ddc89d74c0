# SPDX-License-Identifier: GPL-2.0-or-later
"""Carrier of network devices: asked for directly, and a wake-up from the kernel when one may have changed.

The kernel batches its link events, up to a second apart for a carrier that goes (net/core/link_watch.c), so
an event is only a reason to ask; the answer comes from ETHTOOL_GLINK, which reads the carrier itself (2 us).
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import socket
import struct
from collections.abc import Callable

_RTMGRP_LINK = 1
_SIOCETHTOOL, _ETHTOOL_GLINK = 0x8946, 0x0A


class CarrierWatch:
    """Calls `changed()` when the carrier of any device in this network namespace may have changed."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._events.bind((0, _RTMGRP_LINK))
        self._ask = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._value = ctypes.create_string_buffer(8)
        asyncio.get_running_loop().add_reader(self._events, self._read)

    def _read(self) -> None:
        try:
            while self._events.recv(65536):
                pass
        except OSError:  # all read, or an overrun: a reason to ask all the same
            pass
        self._changed()

    def carrier(self, interface: str) -> bool:
        """Is the device up, with a carrier? False for one that does not exist."""
        struct.pack_into("=II", self._value, 0, _ETHTOOL_GLINK, 0)
        request = struct.pack("16sP", interface.encode(), ctypes.addressof(self._value))
        try:
            fcntl.ioctl(self._ask, _SIOCETHTOOL, request)
        except OSError:
            return False
        return bool(struct.unpack_from("=II", self._value)[1])

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._events)
        self._events.close()
        self._ask.close()
