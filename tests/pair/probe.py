# SPDX-License-Identifier: GPL-2.0-or-later
"""Questions to the VM in every protocol it speaks, asked by a client that does not exist.

The answers are recognised by that client's addresses; no kernel answers for it.
"""

from __future__ import annotations

import socket
from typing import Any

from appliance.lab import topology
from appliance.lab.lab import Lab
from appliance.lab.topology import VM_IP, VM_IP6, VM_MAC
from appliance.lab.wire import (
    ARP,
    ECHO_REPLY,
    ECHO_REPLY6,
    ICMP,
    ICMP6,
    IP,
    IP6,
    NEIGHBOUR_ADVERTISEMENT,
    TCP,
    Frame,
)

NOBODY, NOBODY6 = "10.77.0.99", "fd77::99"
ANSWERS = {(ARP,), (IP, ICMP, ECHO_REPLY), (IP, TCP), (IP6, ICMP6, NEIGHBOUR_ADVERTISEMENT),
           (IP6, ICMP6, ECHO_REPLY6), (IP6, TCP)}  # fmt: skip
_SOURCE_PORT = 1024


class Probe:
    """Asks from the client's cable."""

    def __init__(self, lab: Lab) -> None:
        with topology.inside(lab.netns("client")):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._socket.bind(("eth0", 0))
        mac = ":".join(f"{byte:02x}" for byte in self._socket.getsockname()[4])
        self._questions = [bytes(question) for question in _questions(mac)]

    def ask(self) -> None:
        """One question of each kind, of which ANSWERS are the answers."""
        for question in self._questions:
            self._socket.send(question)

    def close(self) -> None:
        self._socket.close()


def answers(frames: list[Frame]) -> set[tuple[int, ...]]:
    """The kinds of answers among `frames` that went to nobody."""
    return {frame.kind for frame in frames if _to_nobody(frame)}


def _to_nobody(frame: Frame) -> bool:
    at = {ARP: 38, IP: 30, IP6: 38}.get(frame.kind[0])
    if at is None:
        return False
    family, address = (socket.AF_INET6, NOBODY6) if frame.kind[0] == IP6 else (socket.AF_INET, NOBODY)
    return frame.head[at:].startswith(socket.inet_pton(family, address))


def _questions(mac: str) -> list[Any]:
    from scapy.layers.inet import ICMP as Icmp
    from scapy.layers.inet import IP as Ip
    from scapy.layers.inet import TCP as Tcp
    from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, ICMPv6NDOptSrcLLAddr, IPv6
    from scapy.layers.l2 import ARP as Arp
    from scapy.layers.l2 import Ether

    to_vm = Ether(src=mac, dst=VM_MAC)
    to_all = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
    solicited = Ether(src=mac, dst="33:33:ff:00:00:10")
    six = IPv6(src=NOBODY6, dst=VM_IP6)
    return [
        to_all / Arp(op=1, hwsrc=mac, psrc=NOBODY, pdst=VM_IP),
        solicited / IPv6(src=NOBODY6, dst="ff02::1:ff00:10") / ICMPv6ND_NS(tgt=VM_IP6)
        / ICMPv6NDOptSrcLLAddr(lladdr=mac),
        to_vm / Ip(src=NOBODY, dst=VM_IP) / Icmp(type=8, id=7) / b"holdfast",
        to_vm / six / ICMPv6EchoRequest(id=7, data=b"holdfast"),
        to_vm / Ip(src=NOBODY, dst=VM_IP) / Tcp(sport=_SOURCE_PORT, dport=7, flags="S"),
        to_vm / six / Tcp(sport=_SOURCE_PORT, dport=7, flags="S"),
    ]
