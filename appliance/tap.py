# SPDX-License-Identifier: GPL-2.0-or-later
"""Taps: network devices whose other end is a descriptor, and the kernel's counters of them.

Frames go through a tap with a 12-byte virtio-net header in front, so that a TCP segment of 64 KiB stays whole
and its checksum may still be unfinished.
"""

import errno
import fcntl
import os
import socket
import struct

from appliance.errors import HoldfastError, NoPermission, Unavailable

VNET_HEADER = 12
_TUN_DEVICE = "/dev/net/tun"

_TUNSETIFF, _TUNSETVNETHDRSZ, _TUNSETOFFLOAD = 0x400454CA, 0x400454D8, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x0002, 0x1000, 0x4000, 0x8000
_TUN_F_CSUM, _TUN_F_TSO4, _TUN_F_TSO6, _TUN_F_TSO_ECN = 0x1, 0x2, 0x4, 0x8
_OFFLOADS = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN


def open_tap(name: str, *, vnet: bool = True) -> int:
    """Make the tap `name`; returns its descriptor (non-blocking). The tap goes when the last copy closes.

    Raises `Unavailable` (no tun driver, name in use) or `NoPermission`.
    """
    if not 0 < len(name.encode()) <= 15:
        raise Unavailable(f"{name!r} cannot be a network device: 1 to 15 bytes are allowed")
    fd = -1
    try:
        fd = os.open(_TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK)
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_TUN_EXCL | (_IFF_VNET_HDR if vnet else 0)
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        if vnet:
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _OFFLOADS)
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise _explain(name, error) from None
    return fd


def _explain(name: str, error: OSError) -> HoldfastError:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return Unavailable(
            f"the tap {name} cannot be made: there is no {_TUN_DEVICE}",
            "load the driver (`modprobe tun`); in a container, pass the device in",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return NoPermission(
            f"the tap {name} cannot be made: not permitted", "run as root, or with CAP_NET_ADMIN"
        )
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return Unavailable(
            f"the tap {name} cannot be made: the name is in use",
            f"another service of the same VM may be running; `ip -d link show {name}` tells what it is",
        )
    return Unavailable(f"the tap {name} cannot be made: {error.strerror}")


class Counters:
    """The kernel's counters of one device, at 2 us a look (a netlink request packed once)."""

    _RTM_NEWSTATS, _RTM_GETSTATS = 92, 94

    def __init__(self, ifindex: int) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.connect((0, 0))
        self._request = struct.pack("=IHHIIBBHII", 28, self._RTM_GETSTATS, 1, 0, 0, 0, 0, 0, ifindex, 1)
        self._last = (0, 0)

    def sent(self) -> tuple[int, int]:
        """Frames the device has passed on, and frames it has dropped on the way out.

        For a tap: frames the reader has taken, and frames that found the ring full. After the device is gone:
        the last values seen.
        """
        try:
            self._socket.send(self._request)
            reply = self._socket.recv(4096)
        except OSError:
            return self._last
        # Header 16, if_stats_msg 12, attribute header 4; then packets, bytes, errors, dropped: rx, tx.
        if len(reply) >= 96 and reply[4:6] == struct.pack("=H", self._RTM_NEWSTATS):
            _, sent, _, _, _, _, _, dropped = struct.unpack_from("=8Q", reply, 32)
            self._last = (sent, dropped)
        return self._last

    def close(self) -> None:
        self._socket.close()
