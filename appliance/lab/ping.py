# SPDX-License-Identifier: GPL-2.0-or-later
"""The ping stream of the client workload: ICMP echo requests over a raw socket, at a fixed interval."""

from __future__ import annotations

import os
import select
import socket
import struct
import time

from appliance.lab.streams import TIMEOUT_S, Stream


class Ping(Stream):
    """A request every 20 ms, whether the last was answered or not. Lost ones are counted, not judged.

    Its timer doubles as the measure of the machine's noise: late_ns_max is the worst delay with which it ran.
    """

    name = "ping"
    pace_s = 0.02

    def __init__(self, address: str) -> None:
        super().__init__((address, 0))
        self.sent: dict[int, int] = {}  # sequence number -> time in ns; at most TIMEOUT_S of them
        self.lost = 0
        self.late_ns_max = 0
        self._ident = os.getpid() & 0xFFFF
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        self.close()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.connect(self.address)
        self._socket.setblocking(False)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def operate(self) -> None:
        raise NotImplementedError("ping sends and receives independently: see _run")

    def _run(self) -> None:
        self.connect()
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        due = time.monotonic_ns()
        while not self.stop.is_set():
            left = due - time.monotonic_ns()
            if left > 0:
                if poll.poll(max(left / 1e6, 0.01)):
                    self._receive(self._socket)
                continue
            self.late_ns_max = max(self.late_ns_max, -left)
            self._send(self._socket)
            due = max(due + round(self.pace_s * 1e9), time.monotonic_ns() - round(1e9 * self.pace_s))
        self.close()

    def _send(self, sock: socket.socket) -> None:
        sequence = self.requests & 0xFFFF
        self.requests += 1
        packet = struct.pack("!BBHHH", 8, 0, 0, self._ident, sequence) + bytes(32)
        packet = packet[:2] + struct.pack("!H", checksum(packet)) + packet[4:]
        now = time.monotonic_ns()
        for old in [seq for seq, at in self.sent.items() if at < now - TIMEOUT_S * 1e9]:
            del self.sent[old]
            self.lost += 1
        self.sent[sequence] = now
        try:
            sock.send(packet)
        except OSError as error:  # e.g. no ARP answer yet: a lost ping, no broken connection
            self.fault(f"ping: {error}")

    def _receive(self, sock: socket.socket) -> None:
        try:
            packet = sock.recv(2048)
        except OSError:  # an ICMP error came back: the ping stays unanswered
            return
        header = (packet[0] & 15) * 4 if packet else 0
        if len(packet) < header + 8:
            return
        kind, _code, _sum, ident, sequence = struct.unpack_from("!BBHHH", packet, header)
        begun = self.sent.pop(sequence, None) if kind == 0 and ident == self._ident else None
        if begun is not None:
            self.record.start_ns.append(begun)
            self.record.latency_ns.append(time.monotonic_ns() - begun)
            self.answered.set()


def checksum(data: bytes) -> int:
    """The Internet checksum of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF
