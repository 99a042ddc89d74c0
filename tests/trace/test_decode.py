# SPDX-License-Identifier: GPL-2.0-or-later
"""One line about each frame: right for what is common, and never a fault for what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.trace.decode import summary


def frames() -> list[tuple[bytes, str]]:
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
    from scapy.layers.l2 import ARP, Dot1Q, Ether

    ether = Ether(src="52:54:00:aa:00:10", dst="52:54:00:aa:00:01")
    four, six = IP(src="10.0.0.1", dst="10.0.0.9"), IPv6(src="fd00::1", dst="fd00::9")
    made = (
        (ether / four / TCP(sport=80, dport=51234, flags="PA") / b"hello", "10.0.0.1.80 > 10.0.0.9.51234 tcp PA 5"),
        (ether / four / TCP(sport=80, dport=5, flags="S", options=[("MSS", 1460)]), "10.0.0.1.80 > 10.0.0.9.5 tcp S 0"),
        (ether / four / UDP(sport=53, dport=4) / b"abc", "10.0.0.1.53 > 10.0.0.9.4 udp 3"),
        (ether / four / ICMP(seq=7), "10.0.0.1 > 10.0.0.9 icmp echo request seq 7"),
        (ether / four / ICMP(type=3), "10.0.0.1 > 10.0.0.9 icmp unreachable"),
        (ether / IP(src="10.0.0.1", dst="10.0.0.9", frag=185, proto=17) / b"rest",
         "10.0.0.1 > 10.0.0.9 fragment at 1480 of udp"),
        (ether / IP(src="10.0.0.1", dst="224.0.0.18", proto=112) / b"x", "10.0.0.1 > 224.0.0.18 vrrp"),
        (ether / six / TCP(sport=1, dport=2, flags="A"), "fd00::1.1 > fd00::9.2 tcp A 0"),
        (ether / six / ICMPv6EchoRequest(seq=3), "fd00::1 > fd00::9 icmp6 echo request seq 3"),
        (ether / six / ICMPv6ND_NS(tgt="fd00::5"), "fd00::1 > fd00::9 icmp6 neighbor solicitation fd00::5"),
        (ether / six / IPv6ExtHdrHopByHop() / UDP(sport=1, dport=2), "fd00::1.1 > fd00::9.2 udp 0"),
        (ether / six / IPv6ExtHdrFragment(nh=17, offset=10) / b"x", "fd00::1 > fd00::9 fragment of udp"),
        (ether / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.9"), "arp who-has 10.0.0.9 tell 10.0.0.1"),
        (ether / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.1"), "arp announcement 10.0.0.1"),
        (ether / ARP(op=2, psrc="10.0.0.1", hwsrc="52:54:00:aa:00:10"), "arp 10.0.0.1 is-at 52:54:00:aa:00:10"),
        (ether / Dot1Q(vlan=5) / four / UDP(sport=1, dport=2), "vlan 5 10.0.0.1.1 > 10.0.0.9.2 udp 0"),
        (Ether(src="52:54:00:aa:00:10", dst="01:80:c2:00:00:0e", type=0x88CC) / (b"x" * 20),
         "52:54:00:aa:00:10 > 01:80:c2:00:00:0e lldp"),
        (Ether(src="52:54:00:aa:00:10", dst="52:54:00:aa:00:01", type=0x9999) / b"x",
         "52:54:00:aa:00:10 > 52:54:00:aa:00:01 ethertype 0x9999"),
    )
    return [(bytes(packet), said) for packet, said in made]


def test_common_frames() -> None:
    found = frames()
    assert [summary(frame) for frame, _ in found] == [said for _, said in found]


def test_what_is_cut_off_says_so() -> None:
    for frame, said in frames():
        for length in range(len(frame)):
            assert summary(frame[:length])
        assert "cut off" in summary(frame[:16]) or "ethertype" in said or "lldp" in said


@given(st.binary(max_size=200), st.sampled_from((b"\x08\x00", b"\x86\xdd", b"\x08\x06", b"\x81\x00", b"\x00\x10")))
def test_nothing_makes_it_fail(noise: bytes, kind: bytes) -> None:
    assert isinstance(summary(noise), str)
    assert isinstance(summary(bytes(12) + kind + noise), str)


@pytest.mark.parametrize("tags", [1, 40])
def test_many_tags_end(tags: int) -> None:
    assert summary(bytes(12) + b"\x81\x00\x00\x01" * tags + b"\x88\xb5").startswith("vlan 1 ")
