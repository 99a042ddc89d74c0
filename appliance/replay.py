# SPDX-License-Identifier: GPL-2.0-or-later
"""What the VM received since its last whole epoch: copied by the host that runs it, kept by the other for replay."""

from __future__ import annotations

import asyncio
from collections import deque

from appliance.inbound import Inbound
from appliance.peer import Peer
from vmlink.wire import MAX_FRAME, MAX_PAYLOAD, Message, Type, encode_frames


class ReplayFeed:
    """Copies what the VM on this host receives to the backup, while it is on: `start` to `stop`.

    At most `limit` bytes within one epoch, and none that the links have no room for: what is missing is counted.
    """

    def __init__(self, inbound: Inbound, peer: Peer, vm_id: int, limit: int) -> None:
        self._inbound, self._peer, self._id, self._limit = inbound, peer, vm_id, limit
        self._term = self._epoch = self._budget = 0
        self._on = False
        self.unlogged = 0
        """Frames that the backup did not get."""
        asyncio.get_running_loop().add_reader(inbound.fileno(), self._read)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._inbound.fileno())

    def start(self, term: int) -> None:
        self._term, self._on = term, True
        self.epoch(0)

    def stop(self) -> None:
        self._on = False

    def epoch(self, epoch: int) -> None:
        """From here on what arrives belongs to the epoch after `epoch`."""
        self._epoch, self._budget = epoch, self._limit

    def _read(self) -> None:
        frames = self._inbound.read()
        if not frames or not self._on:
            return
        batch: list[tuple[int, bytes]] = []
        size = 0
        for number, frame in enumerate(frames, self._inbound.seen - len(frames) + 1):
            if self._budget < len(frame):
                self.unlogged += 1
                continue
            self._budget -= len(frame)
            if size + len(frame) > MAX_PAYLOAD - MAX_FRAME:
                self._send(batch)
                batch, size = [], 0
            batch.append((number, frame))
            size += len(frame)
        self._send(batch)

    def _send(self, batch: list[tuple[int, bytes]]) -> None:
        message = Message(Type.INBOUND, self._id, self._term, self._epoch, (encode_frames(batch),))
        if batch and not self._peer.send_loose(message):
            self.unlogged += len(batch)


class ReplayLog:
    """Frames that the VM received since the last committed epoch, numbered; at most `limit` bytes.

    At the limit the oldest are dropped and counted: what is missing costs a client a retransmission, no more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._frames: deque[tuple[int, bytes]] = deque()
        self.bytes = 0
        self.dropped = 0

    def add(self, frames: list[tuple[int, bytes]]) -> None:
        for frame in frames:
            self._frames.append(frame)
            self.bytes += len(frame[1])
        while self.bytes > self._limit:
            self.bytes -= len(self._frames.popleft()[1])
            self.dropped += 1

    def trim(self, consumed: int) -> None:
        """Frames up to number `consumed` are part of a committed epoch."""
        while self._frames and self._frames[0][0] <= consumed:
            self.bytes -= len(self._frames.popleft()[1])

    def clear(self) -> None:
        self._frames.clear()
        self.bytes = 0

    def take(self) -> list[bytes]:
        """All frames, oldest first; the log is empty afterwards."""
        frames = [frame for _, frame in self._frames]
        self.clear()
        return frames
