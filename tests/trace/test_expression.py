# SPDX-License-Identifier: GPL-2.0-or-later
"""tcpdump's expressions: what the kernel half takes is what libpcap takes, frame by frame."""

from __future__ import annotations

import random
import struct

import pytest

from appliance.errors import UsageError
from appliance.trace.expression import Expression
from ebpf.trace import FILTER
from tests.trace.kernel import Programs, run

EXPRESSIONS = (
    "tcp", "udp port 53", "tcp dst port 80 or icmp", "host 10.9.0.10", "net 10.9.0.0/16 and not arp", "arp",
    "ip6", "ip6 and tcp port 22", "ether host 52:54:00:aa:00:10", "vlan", "vlan 5 and ip", "less 60", "greater 100",
    "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "ip[8] < 10", "icmp[icmptype] == icmp-echo", "ip[2:2] > 60",
    "udp[8:4] = 0x01020304", "portrange 50-90", "ip multicast", "tcp[13] & 7 != 0 or udp", "len % 7 = 3",
    "ether[len - 1] = 0", "ip proto \\sctp", "ip[0] & 0xf = 5 and tcp[12] >> 4 > 5", "(ip[4:2] ^ 0xffff) * 3 + 1 > 9",
    "ether[0] - 82 = 0", "ip[6:2] & 0x1fff = 0 and ip[9] / 2 = 3", "tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
)  # fmt: skip


def frames(count: int, seed: int) -> list[bytes]:
    """Ethernet frames of many kinds, some of them broken."""
    chance = random.Random(seed)
    addresses = [b"\x0a\x09\x00\x0a", b"\x0a\x09\x00\x01", b"\xc0\xa8\x00\x01", b"\xe0\x00\x00\x05"]
    made = []
    for _ in range(count):
        ports = struct.pack("!HH", chance.choice((80, 22, 53, 51234)), chance.choice((80, 53, 60)))
        offset = chance.choice((0x50, 0x80))
        tcp = ports + struct.pack("!IIBBHHH", 1, 2, offset, chance.randrange(64), 1000, 0, 0) + b"\0" * 12 + b"GET "
        udp = ports + struct.pack("!HH", 20, 0) + b"\1\2\3\4" + bytes(8)
        proto, inner = chance.choice(((6, tcp), (17, udp), (1, bytes((chance.choice((0, 8)), 0)) + bytes(12))))
        data = inner + bytes(chance.randrange(80))
        fragment = chance.choice((0, 0, 0, 0x2001))
        four = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(data), chance.randrange(65536), fragment,
                           chance.choice((1, 64)), proto, 0) + chance.choice(addresses) + chance.choice(addresses)
        six = struct.pack("!IHBB", 6 << 28, len(data), proto, 64) + bytes(32)
        kind, packet = chance.choice(((0x0800, four + data), (0x0800, four + data), (0x86DD, six + data),
                                      (0x0806, bytes.fromhex("0001080006040001") + bytes(20)), (0x88B5, data)))
        tag = struct.pack("!HH", 0x8100, chance.choice((5, 6))) if chance.random() < 0.2 else b""
        mac = bytes.fromhex(chance.choice(("525400aa0010525400aa0001", "ffffffffffff525400aa0001")))
        whole = mac + tag + struct.pack("!H", kind) + packet
        # The kernel's test run takes no frame whose IP header is cut off.
        made.append(whole[:chance.randrange(54, len(whole))] if len(whole) > 54 and chance.random() < 0.2 else whole)
    return made


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_the_kernel_takes_what_libpcap_takes(programs: Programs, text: str) -> None:
    expression, some = Expression(text.split()), frames(160, 1)
    assert expression.fits
    programs.slots.begin(0, programs.ring, 0, 0xFFFF, 2048, expression.instructions)
    taken = []
    for frame in some:
        run(programs.gate, frame)
        taken.append(bool(programs.ring.read()))
    assert taken == [expression.takes(frame, len(frame)) for frame in some]


def test_the_expressions_are_no_formality() -> None:
    """Each of them takes some frames and not others."""
    some = frames(160, 1)
    dull = {text: sum(Expression([text]).takes(frame, len(frame)) for frame in some) for text in EXPRESSIONS}
    assert [text for text, count in dull.items() if count in (0, 160)] == ["ip proto \\sctp"]


def test_a_filter_that_is_none_takes_nothing(programs: Programs) -> None:
    """Whatever is written into a slot, the machine ends and the frame goes its way."""
    chance = random.Random(2)
    for _ in range(60):
        junk = [(chance.choice((chance.randrange(65536), chance.randrange(256))), chance.randrange(256),
                 chance.randrange(256), chance.choice((chance.randrange(1 << 32), chance.randrange(64))))
                for _ in range(FILTER)]
        programs.slots.begin(0, programs.ring, 0, 0xFFFF, 64, junk)
        run(programs.gate, frames(1, 3)[0])
    programs.ring.read()
    programs.slots.begin(0, programs.ring, 0, 0xFFFF, 64, [(0x05, 0, 0, 0)] * FILTER)  # ja +0, and no end
    run(programs.gate, frames(1, 3)[0])
    assert not programs.ring.read()
    assert programs.state.issued_frames == 61


def test_a_long_one_is_not_for_the_kernel() -> None:
    long = Expression([" or ".join(f"host 10.0.{at}.{at}" for at in range(60))])
    assert not long.fits and not Expression(["tcp"]).takes(b"", 0)


def test_nonsense_is_told_in_libpcaps_words() -> None:
    with pytest.raises(UsageError, match="syntax error") as caught:
        Expression(["tcp", "prot", "80"])
    assert "pcap-filter" in caught.value.hint
    with pytest.raises(UsageError, match="nosuchhost|resolve|unknown"):
        Expression(["port nosuchport"])
