# SPDX-License-Identifier: GPL-2.0-or-later
"""Inbound: copies of the frames that the VM receives, for the replay log, and the way to replay them.

Every frame on its way into the VM tap has an index, counted from 1 in the order of arrival. `seen` is the
index of the last frame copied, `consumed()` of the last one that QEMU has taken: what lies between must be
replayed when the VM's state is taken back. Where counting errs (frames lost here, or found the tap full) it
errs towards frames that a network may lose too.
"""

import ctypes
import socket
import struct
from dataclasses import dataclass

from appliance.errors import NoPermission, Unavailable
from appliance.tap import Counters
from ebpf.state import InboundState

VNET_HEADER = 10  # bytes in front of each frame that is read or injected
_READ_FRAMES = 256
_READ_BYTES = 4 << 20
_BUFFER_BYTES = 16 << 20
_FRAME_BYTES = 128 << 10

_SOL_PACKET, _PACKET_STATISTICS, _PACKET_AUXDATA, _PACKET_VNET_HDR = 263, 6, 8, 15
_SO_ATTACH_FILTER, _SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 26, 32, 33
_ETH_P_ALL = 3
_TP_STATUS_VLAN_VALID = 1 << 4
_NEEDS_CSUM = 1
_AUXDATA = struct.Struct("=IIIHHHH")  # status, len, snaplen, mac, net, vlan_tci, vlan_tpid
_ANCILLARY = socket.CMSG_SPACE(_AUXDATA.size)

# Classic BPF: load the packet type; frames that leave through the device whole, others not at all.
_ONLY_OUTGOING = struct.pack(
    "=HBBIHBBIHBBIHBBI",
    *(0x28, 0, 0, 0xFFFFF004),  # ldh [SKF_AD_OFF + SKF_AD_PKTTYPE]
    *(0x15, 0, 1, 4),  # jeq #PACKET_OUTGOING
    *(0x06, 0, 0, 0xFFFFFFFF),  # ret all
    *(0x06, 0, 0, 0),  # ret none
)


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
        self._buffer = memoryview(bytearray(_FRAME_BYTES))
        self._read = self._missed = self._injected = self._refused = 0

    def bind(self, device: str, ifindex: int) -> None:
        """Copy what goes into `device`, which must not be up yet: index 1 is its first frame.

        Raises `NoPermission` or `Unavailable`.
        """
        self.unbind()
        try:
            self._capture = _packet_socket()
            program = ctypes.create_string_buffer(_ONLY_OUTGOING, len(_ONLY_OUTGOING))
            self._capture.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 4, ctypes.addressof(program))
            )
            self._capture.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
            self._capture.bind((device, _ETH_P_ALL))
            self._capture.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # "the device is down": known
            self._inject = _packet_socket()
            self._inject.bind((device, 0))  # receives nothing
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
                length, ancillary, _, _ = capture.recvmsg_into(vector, _ANCILLARY)
            except OSError:  # nothing left, or the tap is gone
                self._count_missed(capture)
                break
            frame = bytes(self._buffer[:length])
            if ancillary:
                frame = _with_tag(frame, ancillary[0][2])
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
                if not VNET_HEADER + 14 <= len(frame) <= _FRAME_BYTES:
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


def _packet_socket() -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    made.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
    made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)
    return made


def _with_tag(frame: bytes, auxdata: bytes) -> bytes:
    """The kernel hands a VLAN tag over beside the frame: put it back, and move the checksum's place along."""
    status, _, _, _, _, tci, protocol = _AUXDATA.unpack_from(auxdata)
    if not status & _TP_STATUS_VLAN_VALID:
        return frame
    flags, gso, header, gso_size, start, offset = struct.unpack_from("=BBHHHH", frame)
    if flags & _NEEDS_CSUM:
        start += 4
    if header:
        header += 4
    addresses, rest = frame[VNET_HEADER : VNET_HEADER + 12], frame[VNET_HEADER + 12 :]
    tag = struct.pack("!HH", protocol or 0x8100, tci)
    return struct.pack("=BBHHHH", flags, gso, header, gso_size, start, offset) + addresses + tag + rest
