# SPDX-License-Identifier: GPL-2.0-or-later
"""What a capture proves: two voices, and words that the VM forgot. Each finding has its innocent twin."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from appliance.lab.campaign_judge import LEAST_TURN, Speech, segment, turns, voices
from appliance.lab.wire import Frame

ARP = bytes(12) + b"\x08\x06" + bytes(28)


def tcp(host: str, at: float, clock: int | None, *, sequence: int = 1000, acknowledged: int = 1, payload: bytes = b"",
        port: int = 40000) -> Frame:
    """A segment of the VM to the client, as captured."""
    options = b"" if clock is None else struct.pack("!BBBBII", 1, 1, 8, 10, clock & 0xFFFFFFFF, 7)
    head = struct.pack("!HHIIBBHHH", 6379, port, sequence & 0xFFFFFFFF, acknowledged, (20 + len(options)) << 2, 0x18,
                       512, 0, 0)
    size = 20 + len(head) + len(options) + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 0, 0, 64, 6, 0, bytes([10, 77, 0, 10]), bytes([10, 77, 0, 1]))
    return Frame(at, host, (bytes(12) + b"\x08\x00" + ip + head + options + payload)[:128])


def arp(host: str, at: float) -> Frame:
    return Frame(at, host, ARP)


def heard(*frames: Frame) -> Speech:
    speech = Speech()
    speech.hear(frames)
    return speech


# --- two speakers ---

def test_hosts_that_speak_in_turn() -> None:
    frames = [arp("alpha", 0.1), arp("alpha", 1.0), arp("beta", 1.1), arp("beta", 3.0), arp("alpha", 3.1)]
    spoken = turns(frames)
    assert [(turn.host, turn.frames) for turn in spoken] == [("alpha", 2), ("beta", 2), ("alpha", 1)]
    assert voices(spoken, 2) == []


def test_nobody_spoke() -> None:
    assert voices(turns([]), 0) == []


def test_a_late_frame_of_a_host_that_lost_its_turn() -> None:
    frames = [arp("alpha", 0.0), arp("beta", 0.4), arp("beta", 1.399), arp("alpha", 1.4), arp("beta", 1.401)]
    [finding] = voices(turns(frames), 1)
    assert finding.startswith("alpha spoke 1 frames") and "1.401000" in finding


def test_a_late_frame_right_after_the_takeover() -> None:
    frames = [arp("alpha", 0.0), arp("beta", 0.4), arp("alpha", 0.4 + LEAST_TURN / 2)]
    assert len(voices(turns(frames), 1)) == 1


def test_a_late_frame_after_which_nobody_spoke() -> None:
    """No alternation shows it; the term does."""
    frames = [arp("alpha", 0.0), arp("beta", 0.4), arp("beta", 2.0), arp("alpha", 2.1)]
    [finding] = voices(turns(frames), 1)
    assert "the term rose by 1" in finding
    assert voices(turns(frames), 2) == voices(turns(frames), None) == []


@given(st.integers(2, 40), st.floats(0.001, LEAST_TURN / 2))
def test_two_that_both_go_on(count: int, every: float) -> None:
    frames = [arp("alpha" if number % 2 else "beta", number * every) for number in range(count)]
    assert bool(voices(turns(frames), None)) == (count > 2)


# --- early frames ---

def test_the_vm_goes_on_where_it_was() -> None:
    speech = heard(tcp("alpha", 1.0, 500, payload=b":1\r\n"), tcp("beta", 1.2, 500, sequence=1004, payload=b":2\r\n"))
    assert (speech.early, speech.findings) == (0, [])


def test_the_vms_clock_runs_again() -> None:
    speech = heard(tcp("alpha", 1.0, 500), tcp("beta", 1.2, 490, sequence=1001))
    assert speech.early == 1 and "10 ms further when alpha" in speech.findings[0]


def test_the_clock_is_compared_across_its_overflow() -> None:
    assert heard(tcp("alpha", 1.0, -3), tcp("beta", 1.2, 4, sequence=1001)).early == 0
    assert heard(tcp("alpha", 1.0, 4), tcp("beta", 1.2, -3, sequence=1001)).early == 1


def test_each_connection_has_a_clock_of_its_own() -> None:
    assert heard(tcp("alpha", 1.0, 500), tcp("beta", 1.2, 90, port=40001)).early == 0


def test_a_frame_that_is_sent_again_is_not_early() -> None:
    first, last = tcp("alpha", 1.0, 490, payload=b":1\r\n"), tcp("alpha", 1.01, 500, sequence=1004, payload=b":2\r\n")
    again = Frame(1.2, "beta", first.head)
    assert heard(first, last, again, tcp("beta", 1.3, 501, sequence=1008)).early == 0


def test_disorder_within_one_host_proves_nothing() -> None:
    assert heard(tcp("alpha", 1.0, 500), tcp("alpha", 1.2, 490, sequence=1001)).early == 0


def test_other_bytes_in_the_same_place() -> None:
    speech = heard(tcp("alpha", 1.0, 500, payload=b"$3\r\nred\r\n"), tcp("beta", 1.2, 510, payload=b"$4\r\nblue\r\n"))
    assert speech.early == 1 and "blue" in speech.findings[0] and "red" in speech.findings[0]


def test_a_retransmission_may_be_longer_or_shorter() -> None:
    frames = [tcp("alpha", 1.0, 500, payload=b"one"), tcp("beta", 1.2, 510, payload=b"onetwo"),
              tcp("beta", 1.3, 520, payload=b"on"), tcp("beta", 1.4, 530, payload=b"onetwo")]
    assert heard(*frames).early == 0
    assert heard(*frames, tcp("beta", 1.5, 540, payload=b"onetoo")).early == 1


def test_a_segment_without_a_clock_is_judged_by_its_bytes() -> None:
    assert heard(tcp("alpha", 1.0, None, payload=b"a"), tcp("beta", 1.2, None, payload=b"b")).early == 1


@given(st.binary(max_size=128))
def test_anything_on_the_wire_is_borne(head: bytes) -> None:
    for frame in (head, bytes(12) + b"\x08\x00" + head, tcp("alpha", 1.0, 5).head[:46] + head):
        segment(frame[:128])
        heard(Frame(1.0, "alpha", frame[:128]))
