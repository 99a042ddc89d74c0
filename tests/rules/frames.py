# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM may send and what it may not, as frames; each forbidden kind with the reason it is dropped for."""

from __future__ import annotations

from collections.abc import Iterator

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.net.stage import CLIENT_MAC, GUEST_MAC

OWN4, OWN6 = "10.77.9.10", "fd77:9::10"
OTHER4, OTHER6, OTHER_MAC = "10.77.9.99", "fd77:9::99", "52:54:00:aa:00:99"
CLIENT4, CLIENT6 = "10.77.9.1", "fd77:9::1"
OWN_LL, OTHER_LL = "fe80::5054:ff:feaa:10", "fe80::1"
Named = tuple[str, Packet]
Forbidden = tuple[str, str, Packet]  # name, why it is dropped, frame


def eth(dst: str = CLIENT_MAC, src: str = GUEST_MAC, **fields: int) -> Ether:
    return Ether(dst=dst, src=src, **fields)


def arp(operation: int, sender: str, *, hardware: str = GUEST_MAC, target: str = CLIENT4, **fields: object) -> ARP:
    return ARP(op=operation, hwsrc=hardware, psrc=sender, pdst=target, **fields)


def changed_arp(at: int, value: int) -> Packet:
    """A reply that is right but for one byte; scapy would move the addresses with their lengths."""
    whole = bytearray(bytes(arp(2, OWN4)))
    whole[at] = value
    return eth(type=0x0806) / Raw(bytes(whole))


def advert(target: str, source: str) -> Packet:
    return IPv6(src=source, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=target, R=0, S=0, O=1) / \
        ICMPv6NDOptDstLLAddr(lladdr=GUEST_MAC)


def solicit(target: str, source: str) -> Packet:
    packet = IPv6(src=source, dst="ff02::1:ff00:1", hlim=255) / ICMPv6ND_NS(tgt=target)
    return packet if source == "::" else packet / ICMPv6NDOptSrcLLAddr(lladdr=GUEST_MAC)


def dhcp(source: str = "0.0.0.0", target: str = "255.255.255.255", sport: int = 68, dport: int = 67) -> Packet:
    return IP(src=source, dst=target) / UDP(sport=sport, dport=dport) / BOOTP(chaddr=bytes(6)) / \
        DHCP(options=[("message-type", "discover"), "end"])


def _mld(source: str) -> Packet:
    return IPv6(src=source, dst="ff02::16", hlim=1) / IPv6ExtHdrHopByHop(options=RouterAlert()) / ICMPv6MLReport2()


def allowed() -> Iterator[Named]:
    """Everything here must pass with OWN4 and OWN6 configured."""
    yield "ip4", eth() / IP(src=OWN4, dst=CLIENT4) / TCP(dport=80)
    yield "ip4 with a VLAN tag", eth() / Dot1Q(vlan=5) / IP(src=OWN4, dst=CLIENT4) / UDP() / Raw(b"x" * 30)
    yield "last piece of ip4", eth() / fragment(IP(src=OWN4, dst=CLIENT4) / ICMP() / (b"x" * 2000), 1400)[-1]
    yield "dhcp discover", eth("ff:ff:ff:ff:ff:ff") / dhcp()
    yield "dhcp renewal", eth() / dhcp(OWN4, CLIENT4)
    yield "arp request", eth("ff:ff:ff:ff:ff:ff") / arp(1, OWN4)
    yield "arp reply", eth() / arp(2, OWN4)
    yield "arp announcement", eth("ff:ff:ff:ff:ff:ff") / arp(1, OWN4, target=OWN4)
    yield "arp probe", eth("ff:ff:ff:ff:ff:ff") / arp(1, "0.0.0.0", target=OTHER4)
    yield "rarp", eth("ff:ff:ff:ff:ff:ff", type=0x8035) / arp(3, "0.0.0.0", target="0.0.0.0")
    yield "ip6", eth() / IPv6(src=OWN6, dst=CLIENT6) / TCP(dport=80)
    yield "ip6 with a VLAN tag", eth() / Dot1Q(vlan=5) / IPv6(src=OWN6, dst=CLIENT6) / TCP(dport=80)
    yield "ip6 in pieces", eth() / IPv6(src=OWN6, dst=CLIENT6) / IPv6ExtHdrFragment(m=1, nh=58) / \
        ICMPv6EchoRequest(data=b"x" * 800)
    yield "ip6 link-local", eth() / IPv6(src=OWN_LL, dst="ff02::2") / UDP() / Raw(b"x" * 30)
    yield "neighbour solicitation", eth() / solicit(CLIENT6, OWN6)
    yield "neighbour solicitation, link-local", eth() / solicit(CLIENT6, OWN_LL)
    yield "duplicate address detection", eth() / solicit(OWN6, "::")
    yield "neighbour advertisement", eth() / advert(OWN6, OWN6)
    yield "neighbour advertisement for link-local", eth() / advert(OWN_LL, OWN_LL)
    yield "router solicitation", eth() / IPv6(src="::", dst="ff02::2", hlim=255) / ICMPv6ND_RS()
    yield "joining a group", eth() / _mld(OWN_LL)
    yield "joining a group, without an address", eth() / _mld("::")


def forbidden() -> Iterator[Forbidden]:
    """Nothing here may pass with OWN4 and OWN6 configured; each is dropped for one reason."""
    yield "another MAC", "mac", eth(src=OTHER_MAC) / IP(src=OWN4, dst=CLIENT4) / UDP() / Raw(b"x" * 30)
    yield "another MAC, arp", "mac", eth("ff:ff:ff:ff:ff:ff", OTHER_MAC) / arp(1, OWN4)
    yield "another MAC, of no protocol", "mac", eth(src=OTHER_MAC, type=0x88B5) / Raw(b"x" * 46)
    yield "another MAC, with a VLAN tag", "mac", eth(src=OTHER_MAC) / Dot1Q(vlan=5) / IP(src=OWN4, dst=CLIENT4)
    yield "another ip4", "ip4", eth() / IP(src=OTHER4, dst=CLIENT4) / TCP(dport=80)
    yield "another ip4, with a VLAN tag", "ip4", eth() / Dot1Q(vlan=5) / IP(src=OTHER4, dst=CLIENT4) / TCP()
    yield "another ip4, with priority only", "ip4", eth() / Dot1Q(vlan=0, prio=3) / IP(src=OTHER4, dst=CLIENT4)
    yield "another ip4, with options", "ip4", eth() / IP(src=OTHER4, dst=CLIENT4, options=b"\1" * 8) / TCP()
    yield "last piece of another ip4", "ip4", \
        eth() / fragment(IP(src=OTHER4, dst=CLIENT4) / ICMP() / (b"x" * 2000), 1400)[-1]
    yield "no ip4 address, to one host", "ip4", eth() / dhcp("0.0.0.0", CLIENT4)
    yield "a dhcp server's answer", "ip4", eth() / dhcp("0.0.0.0", sport=67, dport=68)
    yield "no ip4 address, from another port", "ip4", eth("ff:ff:ff:ff:ff:ff") / dhcp(sport=5353)
    yield "no ip4 address, to another port", "ip4", eth("ff:ff:ff:ff:ff:ff") / dhcp(dport=5353)
    yield "arp for another", "arp", eth("ff:ff:ff:ff:ff:ff") / arp(1, OTHER4)
    yield "arp reply for another", "arp", eth() / arp(2, OTHER4)
    yield "arp reply for another, with a VLAN tag", "arp", eth() / Dot1Q(vlan=5) / arp(2, OTHER4)
    yield "arp reply with another's MAC", "arp", eth() / arp(2, OWN4, hardware=OTHER_MAC)
    yield "arp reply without an address", "arp", eth() / arp(2, "0.0.0.0")
    yield "arp of another hardware", "arp", changed_arp(1, 6)
    yield "arp for another protocol", "arp", changed_arp(2, 0x86)
    yield "arp with a MAC of another length", "arp", changed_arp(4, 8)
    yield "arp with an address of another length", "arp", changed_arp(5, 16)
    yield "arp cut off", "arp", eth(type=0x0806) / Raw(bytes(ARP())[:12])
    yield "rarp with an address", "arp", eth(type=0x8035) / arp(3, OTHER4)
    yield "rarp reply", "arp", eth(type=0x8035) / arp(4, "0.0.0.0")
    yield "another ip6", "ip6", eth() / IPv6(src=OTHER6, dst=CLIENT6) / TCP(dport=80)
    yield "another ip6, with a VLAN tag", "ip6", eth() / Dot1Q(vlan=5) / IPv6(src=OTHER6, dst=CLIENT6) / TCP()
    yield "no ip6 address", "ip6", eth() / IPv6(src="::", dst=CLIENT6) / UDP() / Raw(b"x" * 30)
    yield "no ip6 address, to a wider group", "ip6", eth() / IPv6(src="::", dst="ff05::2", hlim=255) / ICMPv6ND_RS()
    yield "echo without an ip6 address", "ip6", eth() / IPv6(src="::", dst="ff02::1") / ICMPv6EchoRequest()
    yield "udp without an ip6 address", "ip6", eth() / IPv6(src="::", dst="ff02::1") / UDP(sport=0x8700) / bytes(30)
    yield "advertisement for another", "ip6", eth() / advert(OTHER6, OWN6)
    yield "advertisement for another, from link-local", "ip6", eth() / advert(OTHER6, OWN_LL)
    yield "advertisement for another, with a VLAN tag", "ip6", eth() / Dot1Q(vlan=5) / advert(OTHER6, OWN6)
    yield "advertisement from another", "ip6", eth() / advert(OWN6, OTHER6)
    yield "advertisement behind options", "ip6", eth() / IPv6(src=OWN6, dst="ff02::1", hlim=255) / \
        IPv6ExtHdrDestOpt() / ICMPv6ND_NA(tgt=OTHER6)
    yield "first piece of an advertisement", "ip6", eth() / IPv6(src=OWN6, dst="ff02::1", hlim=255) / \
        IPv6ExtHdrFragment(m=1, nh=58) / Raw(b"\x88\0\0\0\0\0\0\0")
    yield "first piece of what may be an advertisement", "ip6", eth() / IPv6(src=OWN6, dst="ff02::1", hlim=255) / \
        IPv6ExtHdrFragment(m=1, nh=60) / Raw(b"\x3a\x00\x01\x04\0\0\0\0")
    yield "solicitation from another", "ip6", eth() / solicit(CLIENT6, OTHER6)
    yield "ip4 behind two VLAN tags", "protocol", eth() / Dot1AD(vlan=7) / Dot1Q(vlan=5) / IP(src=OTHER4, dst=CLIENT4)
    yield "ip4 behind LLC", "protocol", \
        eth() / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / IP(src=OTHER4, dst=CLIENT4)
    yield "a protocol that may hide anything", "protocol", eth(type=0x8847) / Raw(b"x" * 46)


def cut_off() -> Iterator[Forbidden]:
    """Forbidden too, but a kernel with br_netfilter drops these by itself as well."""
    yield "ip4 cut off", "ip4", eth(type=0x0800) / Raw(b"\x45" + b"\0" * 9)
    yield "ip6 cut off", "ip6", eth(type=0x86DD) / Raw(b"\x60" + b"\0" * 19)
