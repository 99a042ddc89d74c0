# SPDX-License-Identifier: GPL-2.0-or-later
"""What the switch of a lab gets from each host: every frame with the VM's MAC, by port, with the kernel's time."""

from __future__ import annotations

import ctypes
import errno
import itertools
import socket
import struct
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from appliance.errors import HoldfastError
from appliance.lab import topology
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS, VM_MAC

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE, _SO_TIMESTAMPNS = 26, 33, 35
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ETH_P_ALL = 3
_SNAP = 128
_EVERY = 0.2  # seconds between two looks of the thread
_TIME = struct.Struct("=qq")
_PACKET_TYPE_AT = 0xFFFFF000 + 4  # SKF_AD_OFF + SKF_AD_PKTTYPE
ARP, IP, IP6 = 0x0806, 0x0800, 0x86DD
ICMP, ICMP6, TCP = 1, 58, 6
ECHO_REPLY, NEIGHBOUR_ADVERTISEMENT, ECHO_REPLY6 = 0, 136, 129


@dataclass(frozen=True, order=True)
class Frame:
    """Seen at `at` (unix seconds) coming from host `port`; `head`: its first bytes."""

    at: float
    port: str
    head: bytes

    @property
    def kind(self) -> tuple[int, ...]:
        """EtherType; for IP the protocol too; for ICMP its type too."""
        ether = int.from_bytes(self.head[12:14], "big")
        if ether == IP:
            protocol, payload = self.head[23], 14 + (self.head[14] & 15) * 4
        elif ether == IP6:
            protocol, payload = self.head[20], 54
        else:
            return (ether,)
        return (ether, protocol, self.head[payload]) if protocol in (ICMP, ICMP6) else (ether, protocol)


def _filter(mac: bytes) -> bytes:
    """Classic BPF: what came in (is not on its way out) with the VM's MAC as its source."""
    first, rest = int.from_bytes(mac[:4], "big"), int.from_bytes(mac[4:], "big")
    program = (
        (0x28, 0, 0, _PACKET_TYPE_AT),  # ldh #type
        (0x15, 5, 0, socket.PACKET_OUTGOING),  # jeq: reject
        (0x20, 0, 0, 6),  # ld [6]
        (0x15, 0, 3, first),
        (0x28, 0, 0, 10),  # ldh [10]
        (0x15, 0, 1, rest),
        (0x06, 0, 0, _SNAP),  # accept
        (0x06, 0, 0, 0),  # reject
    )
    return b"".join(struct.pack("=HBBI", *line) for line in program)


class Wire:
    """Listens from the moment it is made; a thread of its own empties the kernel's buffers."""

    def __init__(self, lab: Lab, mac: str = VM_MAC) -> None:
        program = ctypes.create_string_buffer(_filter(bytes.fromhex(mac.replace(":", ""))))
        self._frames: list[Frame] = []
        self._missed: list[str] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sockets = {}
        with topology.inside(lab.netns("switch")):
            for host in HOSTS:
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                sock.setsockopt(
                    socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HxxxxxxP", 8, ctypes.addressof(program))
                )
                sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
                sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                sock.setblocking(False)
                sock.bind((host, _ETH_P_ALL))
                self._sockets[host] = sock
        self._thread = threading.Thread(target=self._run, name="wire", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._closing.wait(_EVERY):
            with self._lock:
                self._drain()

    def take(self) -> list[Frame]:
        """Every frame since the last call, in the order of time. Raises HoldfastError when one was missed."""
        with self._lock:
            self._drain()
            frames, self._frames = self._frames, []
            missed, self._missed = self._missed, []
        if missed:
            raise HoldfastError("; ".join(missed), "the machine is too busy to listen to everything")
        return sorted(frames)

    def _drain(self) -> None:
        for host in HOSTS:
            self._frames += self._read(host)

    def _read(self, host: str) -> list[Frame]:
        sock, frames = self._sockets[host], []
        while True:
            try:
                head, ancillary, _, _ = sock.recvmsg(_SNAP, 64)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                continue  # the lab is being taken down; said once
            seconds, nanoseconds = _TIME.unpack(ancillary[0][2][: _TIME.size])
            frames.append(Frame(seconds + nanoseconds / 1e9, host, head))
        _, lost = struct.unpack("=II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        if lost:
            self._missed.append(f"the capture at {host} missed {lost} frames")
        return frames

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        for sock in self._sockets.values():
            sock.close()


def speakers(frames: Iterable[Frame]) -> list[str]:
    """Who spoke, one after another: a host that spoke in between another's words appears twice."""
    return [port for port, _ in itertools.groupby(frame.port for frame in frames)]
