# SPDX-License-Identifier: GPL-2.0-or-later
"""Outbound: copies of the small frames in the hold, for the backup to send again.

A frame that was committed but not yet released dies with its host, and the guest that goes on believes it
sent: the client would wait for a retransmission, 200 ms or more. So small frames travel with their epoch,
and the backup sends those again of which it does not know that they were released. A network may double a
frame, and what is sent again is committed. Large frames are no loss: a bulk transfer has others under way.
"""

from __future__ import annotations

import socket
from collections import deque

from appliance import packet
from appliance.errors import Unavailable
from ebpf.state import STAMP_PROTO, number_of

LONGEST = 1600
"""Bytes of the longest frame that is copied."""
EPOCH_BYTES = 64 << 10
"""Copied frames of one epoch, at most; what is more is counted."""
_KEPT_FRAMES = 4096


class Outbound:
    """Copies what goes into the hold tap `device`. Raises Unavailable."""

    def __init__(self, device: str) -> None:
        try:
            self._capture: socket.socket | None = packet.capture(device, LONGEST)
        except OSError as error:
            raise Unavailable(f"frames on {device} cannot be copied: {error.strerror}", "run as root") from None
        self._buffer = memoryview(bytearray(packet.FRAME_BYTES))
        self._frames: deque[tuple[int, bytes]] = deque(maxlen=_KEPT_FRAMES)
        self.skipped = 0
        """Frames that were not copied because their epoch had too many."""

    def _read(self, near: int) -> None:
        """Take all copies; `near` is a frame number that tells which of the 16-bit stamps are meant."""
        while self._capture is not None:
            try:
                length, ancillary, _, _ = self._capture.recvmsg_into([self._buffer], packet.ANCILLARY)
            except OSError:
                return
            tag = packet.tag_of(ancillary)
            if tag is not None and tag[0] == STAMP_PROTO:
                self._frames.append((number_of(tag[1], near), bytes(self._buffer[:length])))

    def forget(self) -> None:
        """Nothing copied so far is of use: it went out as it came."""
        self._read(0)
        self._frames.clear()

    def take(self, seq: int) -> list[tuple[int, bytes]]:
        """The frames up to number `seq` that were not taken before, numbered, without their stamps."""
        self._read(seq)
        taken: list[tuple[int, bytes]] = []
        size = 0
        while self._frames and self._frames[0][0] <= seq:
            number, frame = self._frames.popleft()
            if size + len(frame) > EPOCH_BYTES:
                self.skipped += 1
                continue
            taken.append((number, frame))
            size += len(frame)
        return taken

    def close(self) -> None:
        if self._capture is not None:
            self._capture.close()
            self._capture = None
