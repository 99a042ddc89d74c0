# SPDX-License-Identifier: GPL-2.0-or-later
"""Packet sockets that copy what leaves through a device, each frame behind a 10-byte virtio header.

The kernel hands a VLAN tag over beside the frame; `with_tag` puts one back in.
"""

from __future__ import annotations

import ctypes
import socket
import struct

VNET_HEADER = 10  # bytes in front of each frame
FRAME_BYTES = 128 << 10  # more than the longest frame
BUFFER_BYTES = 16 << 20

_SOL_PACKET, _PACKET_AUXDATA, _PACKET_VNET_HDR = 263, 8, 15
_SO_ATTACH_FILTER, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 26, 32, 33
_ETH_P_ALL = 3
_TP_STATUS_VLAN_VALID = 1 << 4
_NEEDS_CSUM = 1
_AUXDATA = struct.Struct("=IIIHHHH")  # status, len, snaplen, mac, net, vlan_tci, vlan_tpid
ANCILLARY = socket.CMSG_SPACE(_AUXDATA.size)

# Classic BPF: frames that leave through the device and are no longer than the limit whole, others not at all.
_INSTRUCTION = struct.Struct("=HBBI")
_EVERYTHING = 0x7FFFFFFF


def _leaving(longest: int) -> bytes:
    return b"".join(_INSTRUCTION.pack(*one) for one in (
        (0x28, 0, 0, 0xFFFFF004),  # ldh [SKF_AD_OFF + SKF_AD_PKTTYPE]
        (0x15, 0, 3, 4),  # jeq #PACKET_OUTGOING
        (0x80, 0, 0, 0),  # ld len
        (0x25, 1, 0, longest),  # jgt longest
        (0x06, 0, 0, 0xFFFFFFFF),  # ret all
        (0x06, 0, 0, 0),  # ret none
    ))


def _open() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER_BYTES)
    made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, BUFFER_BYTES)
    return made


def capture(device: str, longest: int = _EVERYTHING) -> socket.socket:
    """A non-blocking socket with copies of what leaves through `device`. Raises OSError."""
    made = _open()
    try:
        program = ctypes.create_string_buffer(_leaving(longest))
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 6, ctypes.addressof(program)))
        made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        made.bind((device, _ETH_P_ALL))
        made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # "the device is down": known
    except OSError:
        made.close()
        raise
    return made


def injector(device: str) -> socket.socket:
    """A non-blocking socket that puts frames into `device` and receives nothing. Raises OSError."""
    made = _open()
    try:
        made.bind((device, 0))
    except OSError:
        made.close()
        raise
    return made


def tag_of(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """Protocol and TCI of the tag that came beside a frame, or None."""
    if not ancillary:
        return None
    status, _, _, _, _, tci, protocol = _AUXDATA.unpack_from(ancillary[0][2])
    return (protocol or 0x8100, tci) if status & _TP_STATUS_VLAN_VALID else None


def with_tag(frame: bytes, protocol: int, tci: int) -> bytes:
    """The frame with a tag as its outermost, the place of its checksum moved along."""
    flags, gso, header, gso_size, start, offset = struct.unpack_from("=BBHHHH", frame)
    if flags & _NEEDS_CSUM:
        start += 4
    if header:
        header += 4
    addresses, rest = frame[VNET_HEADER:VNET_HEADER + 12], frame[VNET_HEADER + 12:]
    tag = struct.pack("!HH", protocol, tci)
    return struct.pack("=BBHHHH", flags, gso, header, gso_size, start, offset) + addresses + tag + rest
