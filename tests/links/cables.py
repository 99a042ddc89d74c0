# SPDX-License-Identifier: GPL-2.0-or-later
"""Two network namespaces, alpha and beta, joined by two cables that can be cut or made to swallow everything."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import itertools
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator

from appliance import config as cfg

LINKS = ("link0", "link1")
HOSTS = ("alpha", "beta")
PORT = 7780
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_CLONE_NEWNET = 0x40000000
_serial = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def until(what: str, holds: Callable[[], object], seconds: float = 15.0) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.002)


def run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text, text=True, check=True, capture_output=True, timeout=20)


def address(host: str, link: str, v6: bool = False) -> str:
    number, end = LINKS.index(link), 1 + HOSTS.index(host)
    return f"fd77:7{number}::{end}" if v6 else f"169.254.{77 + number}.{end}"


def other(host: str) -> str:
    return HOSTS[1 - HOSTS.index(host)]


class Cables:
    """See the module."""

    def __init__(self) -> None:
        prefix = f"hflink-{os.getpid()}-{next(_serial)}"
        self.namespaces = {host: f"{prefix}-{host}" for host in HOSTS}
        self._control: dict[str, socket.socket] = {}

    def lay(self) -> None:
        run("ip", "-batch", "-", text="".join(f"netns add {name}\n" for name in self.namespaces.values()))
        pair = "link add {link} netns {alpha} type veth peer name {link} netns {beta}\n"
        run("ip", "-batch", "-", text="".join(pair.format(link=link, **self.namespaces) for link in LINKS))
        for host, name in self.namespaces.items():
            lines = ["link set lo up"]
            for link in LINKS:
                lines += [f"addr add {address(host, link)}/24 dev {link}", f"link set {link} up",
                          f"addr add {address(host, link, v6=True)}/64 dev {link} nodad"]
            run("ip", "-n", name, "-batch", "-", text="\n".join(lines) + "\n")
            with self.inside(host):
                self._control[host] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def take_away(self) -> None:
        for control in self._control.values():
            control.close()
        for name in self.namespaces.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                run("ip", "netns", "del", name)

    @contextlib.contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """The calling thread visits the namespace of `host`."""
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            self.enter(host)
            yield
        finally:
            if _libc.setns(back, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            os.close(back)

    def enter(self, host: str) -> None:
        """The calling thread moves to the namespace of `host`."""
        fd = os.open(f"/run/netns/{self.namespaces[host]}", os.O_RDONLY)
        try:
            if _libc.setns(fd, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(fd)

    # --- faults ---

    def cut(self, link: str, at: str = "alpha") -> None:
        """Take the device of `link` down on host `at`: both ends lose their carrier."""
        self._set(link, at, up=False)

    def mend(self, link: str, at: str = "alpha") -> None:
        self._set(link, at, up=True)

    def _set(self, link: str, at: str, *, up: bool) -> None:
        name = link.encode().ljust(16, b"\0")
        answer = fcntl.ioctl(self._control[at], _SIOCGIFFLAGS, name + bytes(24))
        flags = struct.unpack_from("=H", answer, 16)[0]
        flags = flags | _IFF_UP if up else flags & ~_IFF_UP
        fcntl.ioctl(self._control[at], _SIOCSIFFLAGS, name + struct.pack("=H", flags) + bytes(22))

    def mute(self, *links: str, at: str = "beta") -> None:
        """What arrives over `links` on host `at` is swallowed; the carrier stays."""
        rules = "".join(f'add rule inet mute in iifname "{link}" drop\n' for link in links)
        chain = "add chain inet mute in { type filter hook input priority 0; }\n"
        self._nft(at, "add table inet mute\n" + chain + rules)

    def unmute(self, at: str = "beta") -> None:
        self._nft(at, "delete table inet mute\n")

    def _nft(self, at: str, rules: str) -> None:
        run("ip", "netns", "exec", self.namespaces[at], "nft", "-f", "-", text=rules)

    # --- configuration ---

    def config(self, host: str, *, timing: cfg.Timing, name: str = "", peer: str = "", v6: bool = False) -> cfg.Config:
        """Of a service on `host`; `name` and `peer` where they differ from what they should be."""
        there = other(host)
        links = tuple(cfg.Link(name=link, interface=link, address=address(host, link, v6),
                               peer=address(there, link, v6), port=PORT) for link in LINKS)
        return cfg.Config(host=cfg.Host(name=name or host), peer=cfg.Peer(name=peer or there), link=links, vm={},
                          timing=timing)
