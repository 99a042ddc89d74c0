# SPDX-License-Identifier: GPL-2.0-or-later
"""A stage for one front: a host with a bridge, a client on its uplink, a guest behind a cable; real namespaces."""

import asyncio
import contextlib
import ctypes
import itertools
import os
import select
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

from appliance.front import Front
from appliance.tap import VNET_HEADER

GUEST_MAC = "52:54:00:aa:00:10"
CLIENT_MAC = "52:54:00:aa:00:01"
PLAIN = 0x88B5  # the EtherType for local experiments
_serial = itertools.count()


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class Stage:
    """The calling thread lives in the host's namespace; `inside` visits another."""

    def __init__(self) -> None:
        self.prefix = f"hfnet-{os.getpid()}-{next(_serial)}"
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._made: list[str] = []
        self.sockets: list[socket.socket] = []

    def name(self, place: str) -> str:
        return f"{self.prefix}-{place}"

    def build(self) -> None:
        for place in ("host", "client", "guest"):
            run("ip", "netns", "add", self.name(place))
            self._made.append(self.name(place))
            with self.inside(place):
                for family in ("default", "all"):
                    with open(f"/proc/sys/net/ipv6/conf/{family}/accept_dad", "w") as knob:
                        knob.write("0")
                run("ip", "link", "set", "lo", "up")
        self._enter("host")
        run("ip", "link", "add", "br0", "type", "bridge")
        run("ip", "link", "set", "br0", "up")
        run("ip", "link", "add", "up0", "type", "veth", "peer", "c0", "netns", self.name("client"))
        run("ip", "link", "set", "up0", "master", "br0", "up")
        with self.inside("client"):
            run("ip", "link", "set", "c0", "address", CLIENT_MAC, "up")
            run("ip", "addr", "add", "10.77.9.1/24", "dev", "c0")
            run("ip", "addr", "add", "fd77:9::1/64", "dev", "c0", "nodad")

    def quiet(self) -> None:
        """No IPv6 in host and client: their kernels send nothing unasked."""
        for place in ("host", "client"):
            with self.inside(place), open("/proc/sys/net/ipv6/conf/all/disable_ipv6", "w") as knob:
                knob.write("1")

    def cable_guest(self) -> str:
        """A guest with a kernel of its own network stack; returns the device that stands for its VM tap."""
        run("ip", "link", "add", "vm0", "type", "veth", "peer", "g0", "netns", self.name("guest"))
        with self.inside("guest"):
            run("ip", "link", "set", "g0", "address", GUEST_MAC, "up")
            run("ip", "addr", "add", "10.77.9.10/24", "dev", "g0")
            run("ip", "addr", "add", "fd77:9::10/64", "dev", "g0", "nodad")
        return "vm0"

    def _enter(self, place: str) -> None:
        fd = os.open(f"/run/netns/{self.name(place)}", os.O_RDONLY)
        try:
            _setns(fd)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def inside(self, place: str) -> Iterator[None]:
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self._enter(place)
            yield
        finally:
            _setns(back)
            os.close(back)

    def sniff(self, place: str = "client", device: str = "c0") -> "Sniffer":
        with self.inside(place):
            sniffer = Sniffer(device)
        self.sockets.append(sniffer.socket)
        return sniffer

    def devices(self) -> set[str]:
        return {name for _, name in socket.if_nameindex()}

    def tear_down(self) -> None:
        for made in self.sockets:
            made.close()
        _setns(self._home)
        os.close(self._home)
        for name in self._made:
            run("ip", "netns", "del", name)


class Sniffer:
    """What arrives at a device, whole frames with their VLAN tag put back by the kernel's word."""

    def __init__(self, device: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.socket.setsockopt(263, 8, 1)  # the VLAN tag beside the frame
        self.socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        self.socket.bind((device, 3))
        self.socket.setblocking(False)

    def take(self, proto: int | None = PLAIN) -> list[bytes]:
        """All that has arrived so far, with that EtherType (None: any)."""
        frames = []
        while True:
            try:
                frame, ancillary, _, address = self.socket.recvmsg(1 << 17, 64)
            except BlockingIOError:
                return frames
            if address[2] == socket.PACKET_OUTGOING:
                continue
            status, tci, tpid = _vlan(ancillary)
            if status & 0x10:
                frame = frame[:12] + tpid.to_bytes(2, "big") + tci.to_bytes(2, "big") + frame[12:]
            if proto is None or frame[12:14] == proto.to_bytes(2, "big"):
                frames.append(frame)

    def wait(self, count: int, proto: int | None = PLAIN, timeout: float = 5.0) -> list[bytes]:
        """At least `count` frames, or what has come by the deadline."""
        frames: list[bytes] = []
        deadline = time.monotonic() + timeout
        while len(frames) < count and (left := deadline - time.monotonic()) > 0:
            select.select([self.socket], [], [], left)
            frames += self.take(proto)
        return frames


def _vlan(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int, int]:
    if not ancillary:
        return 0, 0, 0
    data = ancillary[0][2]
    word = lambda at, size: int.from_bytes(data[at : at + size], "little")  # noqa: E731
    return word(0, 4), word(16, 2), word(18, 2)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def frame(payload: bytes, proto: int = PLAIN, *, dst: str = CLIENT_MAC, src: str = GUEST_MAC) -> bytes:
    return (mac(dst) + mac(src) + proto.to_bytes(2, "big") + payload).ljust(60, b"\0")


def numbered(first: int, count: int, size: int = 60) -> list[bytes]:
    return [frame(number.to_bytes(4, "big").ljust(size - 14, b"\0")) for number in range(first, first + count)]


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(one[14:18], "big") for one in frames]


def tap_write(fd: int, one: bytes) -> None:
    """As QEMU does it: the frame behind an empty virtio header."""
    os.write(fd, bytes(VNET_HEADER) + one)


def tap_read(fd: int, proto: int = PLAIN, timeout: float = 5.0) -> bytes:
    """The next frame of that EtherType that comes out of a tap, without its header; empty at the deadline."""
    deadline = time.monotonic() + timeout
    while (left := deadline - time.monotonic()) > 0:
        select.select([fd], [], [], left)
        with contextlib.suppress(BlockingIOError):
            one = os.read(fd, 1 << 17)[VNET_HEADER:]
            if one[12:14] == proto.to_bytes(2, "big"):
                return one
    return b""


@contextlib.asynccontextmanager
async def releasing(front: Front, every: float = 0.005) -> AsyncIterator[None]:
    """As if each epoch were committed at once: marks and releases, every `every` seconds."""

    async def forever() -> None:
        while True:
            await front.gate.release(front.gate.mark())
            await asyncio.sleep(every)

    task = asyncio.create_task(forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
