# SPDX-License-Identifier: GPL-2.0-or-later
"""Announcements: the frames that tell switches and neighbours where a MAC and its addresses are now."""

import ipaddress
import struct

_BROADCAST = b"\xff" * 6
_ALL_NODES = ipaddress.IPv6Address("ff02::1").packed
_ETH_ARP, _ETH_RARP, _ETH_IPV6 = 0x0806, 0x8035, 0x86DD
_SHORTEST = 60  # bytes of an Ethernet frame without its checksum


def announcements(mac: str, ips: tuple[str, ...]) -> list[bytes]:
    """Ethernet frames for `mac`: RARP for the switches; per address gratuitous ARP in both forms, or an
    unsolicited neighbour advertisement. Raises `ValueError` for what is no MAC or address.
    """
    station = mac_bytes(mac)
    frames = [_arp(station, b"\0" * 4, 3, _ETH_RARP)]
    for ip in map(ipaddress.ip_address, ips):
        if isinstance(ip, ipaddress.IPv4Address):
            frames += [_arp(station, ip.packed, 1), _arp(station, ip.packed, 2)]
        else:
            frames.append(_neighbour_advertisement(station, ip.packed))
    return [frame.ljust(_SHORTEST, b"\0") for frame in frames]


def mac_bytes(mac: str) -> bytes:
    parts = bytes.fromhex(mac.replace(":", ""))
    if len(parts) != 6:
        raise ValueError(f"{mac!r} is no MAC address")
    return parts


def _arp(mac: bytes, ip: bytes, operation: int, protocol: int = _ETH_ARP) -> bytes:
    # In a gratuitous reply the target is everybody; in a request and in RARP the station itself or unknown.
    target = _BROADCAST if operation == 2 else mac if operation == 3 else b"\0" * 6
    header = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return _BROADCAST + mac + protocol.to_bytes(2, "big") + header + mac + ip + target + ip


def _neighbour_advertisement(mac: bytes, ip: bytes) -> bytes:
    override = 0x20000000
    option = struct.pack("!BB6s", 2, 1, mac)  # target link-layer address

    def message(checksum: int) -> bytes:
        return struct.pack("!BBHI16s", 136, 0, checksum, override, ip) + option

    pseudo = ip + _ALL_NODES + struct.pack("!II", len(message(0)), 58)
    body = message(_checksum(pseudo + message(0)))
    header = struct.pack("!IHBB16s16s", 6 << 28, len(body), 58, 255, ip, _ALL_NODES)
    return b"\x33\x33" + _ALL_NODES[-4:] + mac + _ETH_IPV6.to_bytes(2, "big") + header + body


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
