# SPDX-License-Identifier: GPL-2.0-or-later
"""One direction of the stream over links that lose what is under way and come back: exactly once, in order."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from appliance.stream import Receiver, Sender
from vmlink.wire import HEADER, Message, Type, WireError, decode_header, digest

LIMIT = 3000


def message(number: int, size: int = 10) -> Message:
    return Message(Type.PAGES, 1, 2, number, (bytes(size),))


def seq_of(header: bytes) -> int:
    return decode_header(header).seq


def test_numbers_from_one() -> None:
    sender, receiver = Sender(LIMIT), Receiver()
    for number in range(1, 5):
        header, same = sender.add(message(number))
        decoded = decode_header(header)
        assert (decoded.seq, decoded.epoch, decoded.length) == (number, number, 10)
        assert decoded.digest == digest(same.payload)
        assert receiver.take(decoded.seq) and not receiver.take(decoded.seq)
        assert receiver.received == number


def test_room_is_bounded_by_bytes() -> None:
    sender, size = Sender(LIMIT), 10 + HEADER.size
    count = 0
    while sender.room:
        sender.add(message(count))
        count += 1
    assert count == -(-LIMIT // size) and sender.kept_bytes == count * size
    assert not sender.received(0) and not sender.room
    assert sender.received(1) and sender.room and sender.kept_bytes == (count - 1) * size
    assert not sender.received(1), "nothing new"
    assert sender.received(count) and sender.kept_bytes == 0 and not list(sender.unreceived())


def test_what_was_not_received_is_sent_again_in_order() -> None:
    sender = Sender(LIMIT)
    for number in range(1, 6):
        sender.add(message(number))
    sender.received(2)
    again = list(sender.unreceived())
    assert [seq_of(header) for header, _ in again] == [3, 4, 5]
    assert [sent.epoch for _, sent in again] == [3, 4, 5]


def test_an_acknowledgement_of_the_future_is_refused() -> None:
    sender = Sender(LIMIT)
    with pytest.raises(WireError, match="acknowledges message 1, but only 0 were sent"):
        sender.received(1)
    sender.add(message(1))
    with pytest.raises(WireError, match="acknowledges message 2, but only 1"):
        sender.received(2)
    assert sender.kept_bytes, "and nothing was forgotten for it"


@pytest.mark.parametrize("seq, missing", [(2, 1), (3, 2), (2**64 - 1, 2**64 - 2)])
def test_a_gap_is_refused(seq: int, missing: int) -> None:
    receiver = Receiver()
    with pytest.raises(WireError, match=f"message {seq} after 0: {missing} are missing"):
        receiver.take(seq)
    assert receiver.received == 0 and receiver.take(1)


class LossyLinks(RuleBasedStateMachine):
    """Two links like TCP: each delivers in order what it delivers, until it breaks and loses all under way.

    The sender moves to the other link when the active one breaks; the old link's receiver may still hand on what
    it holds. Acknowledgements come late, come twice and come over either link.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sender, self.receiver = Sender(LIMIT), Receiver()
        self.links: list[deque[tuple[bytes, Message]]] = [deque(), deque()]
        self.held: list[deque[tuple[bytes, Message]]] = [deque(), deque()]  # arrived, not handed on yet
        self.active = 0
        self.acknowledgements: list[int] = [0]
        self.sent: list[int] = []
        self.taken: list[int] = []

    @precondition(lambda self: self.sender.room)
    @rule(size=st.integers(0, 900))
    def send(self, size: int) -> None:
        number = len(self.sent) + 1
        self.links[self.active].append(self.sender.add(message(number, size)))
        self.sent.append(number)

    @rule(which=st.integers(0, 1), count=st.integers(1, 5))
    def arrive(self, which: int, count: int) -> None:
        for _ in range(min(count, len(self.links[which]))):
            self.held[which].append(self.links[which].popleft())

    @rule(which=st.integers(0, 1), count=st.integers(1, 5))
    def hand_on(self, which: int, count: int) -> None:
        for _ in range(min(count, len(self.held[which]))):
            header, sent = self.held[which].popleft()
            if self.receiver.take(seq_of(header)):
                self.taken.append(sent.epoch)

    @rule(handed_on=st.booleans())
    def break_active(self, handed_on: bool) -> None:
        """A drained socket hands on what it holds first, or all of that is lost too."""
        self.links[self.active].clear()
        if handed_on:
            self.hand_on(self.active, 100)
        self.held[self.active].clear()
        self.active = 1 - self.active
        for entry in self.sender.unreceived():
            self.links[self.active].append(entry)

    @rule()
    def acknowledge(self) -> None:
        self.acknowledgements.append(self.receiver.received)

    @rule(data=st.data())
    def hear_acknowledgement(self, data: st.DataObject) -> None:
        self.sender.received(data.draw(st.sampled_from(self.acknowledgements)))

    @invariant()
    def in_order_and_once(self) -> None:
        assert self.taken == self.sent[:len(self.taken)]

    @invariant()
    def nothing_unreceived_is_forgotten(self) -> None:
        kept = [seq_of(header) for header, _ in self.sender.unreceived()]
        assert kept == self.sent[len(self.sent) - len(kept):]
        assert len(self.sent) - len(kept) <= len(self.taken)
        assert self.sender.kept_bytes == sum(each.size for _, each in self.sender.unreceived())
        assert self.sender.kept_bytes < LIMIT + 900 + HEADER.size

    def teardown(self) -> None:
        """In the end a link lasts long enough: everything has arrived."""
        self.break_active(True)
        self.arrive(self.active, 10**6)
        self.hand_on(self.active, 10**6)
        assert self.taken == self.sent
        self.sender.received(self.receiver.received)
        assert self.sender.kept_bytes == 0


LossyLinks.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
TestLossyLinks = LossyLinks.TestCase
