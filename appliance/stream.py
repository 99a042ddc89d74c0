# SPDX-License-Identifier: GPL-2.0-or-later
"""Exactly once and in order over links that come and go: the two ends of one direction, pure.

The sender numbers messages from 1 and keeps each until the peer has said that it was received; after the
loss of a link it sends the rest again over another. The receiver takes each number once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from vmlink.wire import Message, WireError, digest, encode_header


class Sender:
    """Numbers messages and keeps them until they are acknowledged.

    Bounded by `limit` bytes: `room` says whether another message should be offered; the caller waits, nothing
    is dropped.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 1
        self._kept: deque[tuple[int, bytes, Message]] = deque()
        self.kept_bytes = 0

    @property
    def room(self) -> bool:
        return self.kept_bytes < self._limit

    def add(self, message: Message) -> tuple[bytes, Message]:
        """Give the message its number; returns header and message to send."""
        header = encode_header(message, self._next, digest(message.payload))
        self._kept.append((self._next, header, message))
        self.kept_bytes += message.size
        self._next += 1
        return header, message

    def received(self, seq: int) -> bool:
        """The peer has everything up to `seq`. Returns whether that freed room. Raises WireError for a number
        that was never sent."""
        if seq >= self._next:
            raise WireError(f"the peer acknowledges message {seq}, but only {self._next - 1} were sent")
        before = self.kept_bytes
        while self._kept and self._kept[0][0] <= seq:
            self.kept_bytes -= self._kept.popleft()[2].size
        return self.kept_bytes < before

    def unreceived(self) -> Iterator[tuple[bytes, Message]]:
        """What must be sent again, in order."""
        for _, header, message in list(self._kept):
            yield header, message


class Receiver:
    """Takes each number once."""

    def __init__(self) -> None:
        self.received = 0

    def take(self, seq: int) -> bool:
        """True for the next message, False for one that was received before. Raises WireError for a gap."""
        if seq <= self.received:
            return False
        if seq != self.received + 1:
            raise WireError(f"message {seq} after {self.received}: {seq - self.received - 1} are missing")
        self.received = seq
        return True
