# SPDX-License-Identifier: GPL-2.0-or-later
"""Does anybody out there answer? ARP probes to configured neighbours, from the production bridge itself.

The source never changes: the bridge's MAC, and its IPv4 address, or 0.0.0.0 where it has none (a probe as RFC 5227
has it, that fills nobody's cache). A bridge fails when none of its neighbours answers; without any configured nothing
is known.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import socket
import struct

from appliance.health.monitor import Assessor
from appliance.health.reading import Reading, State
from appliance.health.settings import Health

PATIENCE = 0.5
"""Seconds in which an answer counts, if that is less than half the interval."""
_ETH_P_ARP, _PACKET_OUTGOING = 0x0806, 4
_SIOCGIFADDR, _SIOCGIFHWADDR = 0x8915, 0x8927
_SO_ATTACH_FILTER = 26
_ARP = struct.Struct("!6s6sHHHBBH6s4s6s4s")
# Load the half-word at 20, the operation; pass replies (2) whole, nothing else.
_REPLIES_ONLY = struct.pack("=" + "HBBI" * 4, 0x28, 0, 0, 20, 0x15, 0, 1, 2, 0x06, 0, 0, 0xFFFF, 0x06, 0, 0, 0)
_SOURCE = "ARP"


class Reach:
    """The monitor `reach`."""

    name = "reach"

    def __init__(self, bridges: list[str], health: Health) -> None:
        self.interval = health.interval
        self._assess = Assessor("uplink", health.rounds, health.settle)
        self._patience = min(PATIENCE, health.interval / 2)
        self._targets: dict[str, list[str]] = {bridge: [] for bridge in bridges}
        for probe in health.probe:
            address, _, bridge = probe.partition("@")
            self._targets[bridge or bridges[0]].append(address)

    def close(self) -> None:
        """Nothing is held between two readings."""

    async def read(self) -> list[Reading]:
        return list(await asyncio.gather(*map(self._bridge, self._targets)))

    async def _bridge(self, bridge: str) -> Reading:
        subject, targets = f"{bridge} reach", self._targets[bridge]
        if not targets:
            return self._assess.unknown(subject, "nothing to probe: health.probe names no address", _SOURCE)
        try:
            silent = await _probe(bridge, targets, self._patience)
            reason = f"no answer from {', '.join(silent)}" if silent else ""
        except OSError as error:
            silent, reason = targets, f"cannot probe through {bridge}: {error.strerror or error}"
        state = State.FAILED if len(silent) == len(targets) else State.WARN if silent else State.OK
        return self._assess.found(subject, state, source=_SOURCE, value=len(targets) - len(silent), unit="answering",
                                  threshold=f"failed <= 0 of {len(targets)}", reason=reason)


async def _probe(bridge: str, targets: list[str], patience: float) -> list[str]:
    """Those of the IPv4 addresses that do not answer through `bridge` within `patience` seconds. Raises OSError."""
    waiting = {socket.inet_aton(target): target for target in targets}
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0) as sock:
        program = ctypes.create_string_buffer(_REPLIES_ONLY)
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", 4, ctypes.addressof(program)))
        sock.bind((bridge, _ETH_P_ARP))
        mac, own = _addresses(sock, bridge)
        for address in waiting:
            sock.send(_ARP.pack(b"\xff" * 6, mac, _ETH_P_ARP, 1, 0x0800, 6, 4, 1, mac, own, bytes(6), address)
                      .ljust(60, b"\0"))
        try:
            async with asyncio.timeout(patience):
                while waiting:
                    frame, sender = await loop.sock_recvfrom(sock, 128)
                    if len(frame) >= _ARP.size and sender[2] != _PACKET_OUTGOING:
                        waiting.pop(_ARP.unpack_from(frame)[9], None)
        except TimeoutError:
            pass
    return list(waiting.values())


def _addresses(sock: socket.socket, bridge: str) -> tuple[bytes, bytes]:
    """MAC and IPv4 address of the bridge."""
    request = struct.pack("16s24x", bridge.encode())
    mac = fcntl.ioctl(sock, _SIOCGIFHWADDR, request)[18:24]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        try:
            own = fcntl.ioctl(asker, _SIOCGIFADDR, request)[20:24]
        except OSError:  # it has none
            own = bytes(4)
    return mac, own
