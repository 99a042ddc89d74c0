# SPDX-License-Identifier: GPL-2.0-or-later
"""Inbound: copies of the frames that the VM receives, for the replay log, and the way to replay them.

Every frame on its way into the VM tap has an index, counted from 1 in the order of arrival. `seen` is the
index of the last frame copied, `consumed()` of the last one that QEMU has taken: what lies between must be
replayed when the VM's state is taken back. Where counting errs (frames lost here, or found the tap full) it
errs towards frames that a network may lose too.
"""

import socket
import struct
from dataclasses import dataclass

from appliance import packet
from appliance.errors import NoPermission, Unavailable
from appliance.tap import Counters
from ebpf.state import InboundState

VNET_HEADER = packet.VNET_HEADER
_READ_FRAMES = 256
_READ_BYTES = 4 << 20
_SOL_PACKET, _PACKET_STATISTICS = 263, 6


@dataclass(frozen=True, slots=True)
class InboundStats:
    """Frames on their way to the VM since the front was made."""

    open: bool
    passed_frames: int
    passed_bytes: int
    closed_frames: int  # dropped: the front was shut
    seen: int
    consumed: int
    missed_frames: int  # went to the VM, but could not be copied
    injected_frames: int
    refused_frames: int  # replayed frames that the kernel did not take


class Inbound:
    """The inbound side of one front. `bind` follows the VM to each new tap; indexes start again there."""

    def __init__(self, state: InboundState) -> None:
        self._state = state
        self._capture: socket.socket | None = None
        self._inject: socket.socket | None = None
        self._counters: Counters | None = None
        self._buffer = memoryview(bytearray(packet.FRAME_BYTES))
        self._read = self._missed = self._injected = self._refused = 0

    def bind(self, device: str, ifindex: int) -> None:
        """Copy what goes into `device`, which must not be up yet: index 1 is its first frame.

        Raises `NoPermission` or `Unavailable`.
        """
        self.unbind()
        try:
            self._capture = packet.capture(device)
            self._inject = packet.injector(device)
            self._counters = Counters(ifindex)
        except OSError as error:
            self.unbind()
            if isinstance(error, PermissionError):
                raise NoPermission(f"no copies of the frames on {device}", "run as root") from None
            raise Unavailable(f"frames on {device} cannot be copied: {error.strerror}") from None
        self._read = self._missed = 0
        self._state.vm_ifindex = ifindex

    def unbind(self) -> None:
        """Nothing goes to the VM any more, nothing is copied. Idempotent."""
        self._state.vm_ifindex = 0
        for thing in (self._capture, self._inject, self._counters):
            if thing is not None:
                thing.close()
        self._capture = self._inject = self._counters = None

    def open(self) -> None:
        """Let frames in to the VM."""
        self._state.open = 1

    def shut(self) -> None:
        """Drop frames for the VM, and count them."""
        self._state.open = 0

    def fileno(self) -> int:
        """Readable when there are copies. Changes with `bind`; raises `Unavailable` before the first."""
        if self._capture is None:
            raise Unavailable("there is no VM tap yet")
        return self._capture.fileno()

    @property
    def seen(self) -> int:
        """Index of the last frame that `read` returned, counting those that could not be copied."""
        return self._read + self._missed

    def read(self) -> list[bytes]:
        """The copies that are there, 10-byte virtio header + frame; at most 256, and about 4 MiB, a call."""
        frames: list[bytes] = []
        size = 0
        capture = self._capture
        if capture is None:
            return frames
        vector = [self._buffer]
        while len(frames) < _READ_FRAMES and size < _READ_BYTES:
            try:
                length, ancillary, _, _ = capture.recvmsg_into(vector, packet.ANCILLARY)
            except OSError:  # nothing left, or the tap is gone
                self._count_missed(capture)
                break
            frame = bytes(self._buffer[:length])
            if tag := packet.tag_of(ancillary):
                frame = packet.with_tag(frame, *tag)
            frames.append(frame)
            size += length
        self._read += len(frames)
        return frames

    def _count_missed(self, capture: socket.socket) -> None:
        """Asked when all copies are read: every frame missed so far lies before the next copy."""
        try:
            statistics = capture.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
        except OSError:
            return
        self._missed += struct.unpack("=II", statistics)[1]  # the kernel starts again from zero

    def consumed(self) -> int:
        """Index of the last frame that QEMU has taken from its tap (frames that found it full included)."""
        return sum(self._counters.sent()) if self._counters is not None else 0

    def inject(self, frames: list[bytes]) -> int:
        """Put replayed frames (as `read` gave them) into the VM tap, in order; returns how many went in.

        They are input to the VM like any other: they get indexes and are copied.
        """
        if self._inject is None:
            raise Unavailable("there is no VM tap to replay into")
        done = 0
        for frame in frames:
            try:
                if not VNET_HEADER + 14 <= len(frame) <= packet.FRAME_BYTES:
                    raise OSError("not a frame")
                self._inject.send(frame)
                done += 1
            except OSError:
                self._refused += 1
        self._injected += done
        return done

    def stats(self) -> InboundStats:
        return InboundStats(
            open=self._state.open != 0,
            passed_frames=self._state.passed_frames,
            passed_bytes=self._state.passed_bytes,
            closed_frames=self._state.closed_frames,
            seen=self.seen,
            consumed=self.consumed(),
            missed_frames=self._missed,
            injected_frames=self._injected,
            refused_frames=self._refused,
        )
