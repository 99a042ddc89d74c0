# SPDX-License-Identifier: GPL-2.0-or-later
"""Carrier of network devices, told by the kernel at once (rtnetlink link events).

Only the fixed `struct ifinfomsg` of each RTM_NEWLINK or RTM_DELLINK is read (linux/rtnetlink.h): index and
flags are all that is needed, and a dying cable is no moment for a general parser.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

_NLMSG = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFINFO = struct.Struct("=BxHiII")  # family, type, index, flags, change
_RTMGRP_LINK = 1
_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_IFF_UP, _IFF_LOWER_UP = 0x1, 0x10000


class CarrierWatch:
    """Calls `changed(ifindex, carrier)` for every link event in this network namespace."""

    def __init__(self, changed: Callable[[int, bool], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK,
                                     socket.NETLINK_ROUTE)
        self._socket.bind((0, _RTMGRP_LINK))
        asyncio.get_running_loop().add_reader(self._socket, self._read)

    def _read(self) -> None:
        try:
            data = self._socket.recv(65536)
        except OSError:  # overrun: the heartbeats will tell
            return
        at = 0
        while at + _NLMSG.size + _IFINFO.size <= len(data):
            length, kind, *_ = _NLMSG.unpack_from(data, at)
            if length < _NLMSG.size:
                return
            if kind in (_RTM_NEWLINK, _RTM_DELLINK):
                _, _, index, flags, _ = _IFINFO.unpack_from(data, at + _NLMSG.size)
                up = kind == _RTM_NEWLINK and flags & _IFF_UP and flags & _IFF_LOWER_UP
                self._changed(index, bool(up))
            at += (length + 3) & ~3

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
