# SPDX-License-Identifier: GPL-2.0-or-later
"""Does anybody out there answer? ARP probes to configured neighbours, from the production bridge itself.

The source never changes: the bridge's MAC, and its IPv4 address, or 0.0.0.0 where it has none (a probe as RFC 5227
has it, that fills nobody's cache). A bridge fails when none of its neighbours answers; without any configured nothing
is known.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import socket
import struct

from appliance.health.monitor import Assessor
from appliance.health.reading import Reading, State
from appliance.health.settings import Health

PATIENCE = 0.5
"""Seconds in which an answer counts, if that is less than half the interval."""
MOST = 1000
"""Answers read at once: more are nobody's neighbours."""
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
        self._ears: dict[str, _Ear] = {}
        self._targets: dict[str, list[str]] = {bridge: [] for bridge in bridges}
        for probe in health.probe:
            address, _, bridge = probe.partition("@")
            self._targets[bridge or bridges[0]].append(address)

    def close(self) -> None:
        for bridge in list(self._ears):
            self._forget(bridge)

    def _forget(self, bridge: str) -> None:
        if ear := self._ears.pop(bridge, None):
            ear.close()

    async def read(self) -> list[Reading]:
        return list(await asyncio.gather(*map(self._bridge, self._targets)))

    async def _bridge(self, bridge: str) -> Reading:
        subject, targets = f"{bridge} reach", self._targets[bridge]
        if not targets:
            return self._assess.unknown(subject, "nothing to probe: health.probe names no address", _SOURCE)
        try:
            if bridge not in self._ears:
                self._ears[bridge] = _Ear(bridge)
            silent = await self._ears[bridge].probe(targets, self._patience)
            reason = f"no answer from {', '.join(silent)}" if silent else ""
        except OSError as error:
            self._forget(bridge)
            silent, reason = targets, f"cannot probe through {bridge}: {error.strerror or error}"
        state = State.FAILED if len(silent) == len(targets) else State.WARN if silent else State.OK
        return self._assess.found(subject, state, source=_SOURCE, value=len(targets) - len(silent), unit="answering",
                                  threshold=f"failed <= 0 of {len(targets)}", reason=reason)


class _Ear:
    """A socket that hears the ARP replies to one bridge. Closing such a socket takes 10 ms and more, so it is kept as
    long as it serves, and closed in a thread. Raises OSError when it cannot be had."""

    def __init__(self, bridge: str) -> None:
        self._bridge = bridge
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            program = ctypes.create_string_buffer(_REPLIES_ONLY)
            attached = struct.pack("HP", 4, ctypes.addressof(program))
            self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)
            self.socket.bind((bridge, _ETH_P_ARP))
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        asyncio.get_running_loop().run_in_executor(None, self.socket.close)

    async def probe(self, targets: list[str], patience: float) -> list[str]:
        """Those of the IPv4 addresses that do not answer within `patience` seconds. Raises OSError."""
        waiting = {socket.inet_aton(target): target for target in targets}
        self._heard()  # answers that came too late
        # In a thread: it waits for the kernel's configuration lock.
        mac, own = await asyncio.get_running_loop().run_in_executor(None, _addresses, self._bridge)
        for address in waiting:
            self.socket.send(_ARP.pack(b"\xff" * 6, mac, _ETH_P_ARP, 1, 0x0800, 6, 4, 1, mac, own, bytes(6), address)
                             .ljust(60, b"\0"))
        answered = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.socket, answered.set)
        try:
            async with asyncio.timeout(patience):
                while waiting:
                    await answered.wait()
                    answered.clear()
                    self._strike(waiting)
        except TimeoutError:
            self._strike(waiting)  # in time, if this process stood still meanwhile
        finally:
            asyncio.get_running_loop().remove_reader(self.socket)
        return list(waiting.values())

    def _strike(self, waiting: dict[bytes, str]) -> None:
        for address in self._heard():
            waiting.pop(address, None)

    def _heard(self) -> list[bytes]:
        """Whose answers have arrived since the last time."""
        found: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(MOST):
                frame, sender = self.socket.recvfrom(128)
                if len(frame) >= _ARP.size and sender[2] != _PACKET_OUTGOING:
                    found.append(_ARP.unpack_from(frame)[9])
        return found


def _addresses(bridge: str) -> tuple[bytes, bytes]:
    """MAC and IPv4 address of the bridge. Raises OSError."""
    request = struct.pack("16s24x", bridge.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asker:
        mac = fcntl.ioctl(asker, _SIOCGIFHWADDR, request)[18:24]
        try:
            own = fcntl.ioctl(asker, _SIOCGIFADDR, request)[20:24]
        except OSError:  # it has none
            own = bytes(4)
    return mac, own
