# SPDX-License-Identifier: GPL-2.0-or-later
"""One line about a frame: who to whom, and what. For depth there is tshark.

What is cut off or makes no sense is said to be so; nothing in a frame can make this fail.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

_KINDS = {0x0800: "ip", 0x86DD: "ip6", 0x0806: "arp", 0x8035: "rarp", 0x88CC: "lldp", 0x8863: "pppoe",
          0x88B5: "local"}
_TAGS = (0x8100, 0x88A8)
_FLAGS = "FSRPAUEC"
_ICMP = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request", 11: "time exceeded"}
_ICMP6 = {1: "unreachable", 2: "too big", 3: "time exceeded", 128: "echo request", 129: "echo reply",
          130: "listener query", 131: "listener report", 133: "router solicitation", 134: "router advertisement",
          135: "neighbor solicitation", 136: "neighbor advertisement", 143: "listener report"}
_PROTOCOLS = {2: "igmp", 41: "ip6", 47: "gre", 50: "esp", 51: "ah", 89: "ospf", 112: "vrrp", 132: "sctp"}
_EXTENSIONS = (0, 43, 60)  # hop-by-hop, routing, destination options: 8 bytes and more, in front of the rest
_FRAGMENT = 44
_CUT = "cut off"


def mac(six: bytes) -> str:
    return six.hex(":")


def summary(frame: bytes) -> str:
    """What an Ethernet frame, of which this is the beginning, is."""
    if len(frame) < 14:
        return _CUT
    at, tags = 12, ""
    kind = int.from_bytes(frame[at:at + 2], "big")
    while kind in _TAGS and len(frame) >= at + 6:
        tags += f"vlan {int.from_bytes(frame[at + 2:at + 4], 'big') & 0xFFF} "
        at += 4
        kind = int.from_bytes(frame[at:at + 2], "big")
    rest = frame[at + 2:]
    try:
        text = _LAYERS[kind](rest) if kind in _LAYERS else _link(frame, kind)
    except (struct.error, IndexError, ValueError):
        text = f"{_KINDS.get(kind, hex(kind))} {_CUT}"
    return tags + text


def _link(frame: bytes, kind: int) -> str:
    if kind in _TAGS:
        return f"vlan {_CUT}"
    name = f"802.3 length {kind}" if kind < 0x600 else _KINDS.get(kind, f"ethertype 0x{kind:04x}")
    return f"{mac(frame[6:12])} > {mac(frame[:6])} {name}"


def _arp(data: bytes) -> str:
    operation, sender, theirs, target = struct.unpack_from("!6xH6s4s6x4s", data)
    asked, tells = _four(target), _four(theirs)
    if operation == 1:
        return f"arp announcement {tells}" if asked == tells else f"arp who-has {asked} tell {tells}"
    return f"arp {tells} is-at {mac(sender)}" if operation == 2 else f"arp operation {operation}"


def _ip(data: bytes) -> str:
    first, total, fragment, protocol, source, target = struct.unpack_from("!BxHxxHxBxx4s4s", data)
    header = (first & 0xF) * 4
    a, b = _four(source), _four(target)
    if fragment & 0x1FFF:
        return f"{a} > {b} fragment at {(fragment & 0x1FFF) * 8} of {_protocol(protocol)}"
    return _carried(a, b, protocol, data[header:], total - header if total else None)


def _ip6(data: bytes) -> str:
    length, protocol, source, target = struct.unpack_from("!4xHBx16s16s", data)
    a, b = str(ipaddress.IPv6Address(source)), str(ipaddress.IPv6Address(target))
    rest, left = data[40:], length or None
    while protocol in _EXTENSIONS or protocol == _FRAGMENT:
        size = 8 if protocol == _FRAGMENT else 8 + rest[1] * 8
        if protocol == _FRAGMENT and struct.unpack_from("!2xH", rest)[0] & 0xFFF8:
            return f"{a} > {b} fragment of {_protocol(rest[0])}"
        protocol, rest, left = rest[0], rest[size:], left - size if left else None
    return _carried(a, b, protocol, rest, left)


def _carried(a: str, b: str, protocol: int, data: bytes, length: int | None) -> str:
    """`length` of what the IP packet carries; None where it does not say (a frame of more than 64 KiB)."""
    between = f"{a} > {b}"
    if protocol in (6, 17) and len(data) >= 4:
        ports = struct.unpack_from("!HH", data)
        between = f"{a}.{ports[0]} > {b}.{ports[1]}"
    if protocol == 6:
        offset, flags = struct.unpack_from("!12xBB", data)
        shown = "".join(letter for bit, letter in enumerate(_FLAGS) if flags >> bit & 1)
        payload = "" if length is None else f" {max(0, length - (offset >> 4) * 4)}"
        return f"{between} tcp {shown or 'none'}{payload}"
    if protocol == 17:
        return f"{between} udp {max(0, struct.unpack_from('!4xH', data)[0] - 8)}"
    if protocol == 1:
        return f"{between} icmp {_ICMP.get(data[0], f'type {data[0]}')}{_sequence(data, (0, 8))}"
    if protocol == 58:
        about = f" {ipaddress.IPv6Address(data[8:24])}" if data[0] in (135, 136) and len(data) >= 24 else ""
        return f"{between} icmp6 {_ICMP6.get(data[0], f'type {data[0]}')}{about}{_sequence(data, (128, 129))}"
    return f"{between} {_protocol(protocol)}"


def _sequence(data: bytes, echoes: tuple[int, int]) -> str:
    return f" seq {int.from_bytes(data[6:8], 'big')}" if data[0] in echoes and len(data) >= 8 else ""


def _protocol(number: int) -> str:
    names = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmp6"} | _PROTOCOLS
    return names.get(number, f"protocol {number}")


def _four(address: bytes) -> str:
    return ".".join(map(str, address))


_LAYERS: dict[int, Callable[[bytes], str]] = {0x0800: _ip, 0x86DD: _ip6, 0x0806: _arp}
