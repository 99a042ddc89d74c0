# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest booted by hand in a network namespace of its own: the image, and nothing of ours around it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

BUILD = Path(__file__).resolve().parents[2] / "build"
IMAGE, DISK_IMAGE = BUILD / "image", BUILD / "image-disk"
BOOT_LIMIT = 60.0  # seconds; it takes 3, a loaded machine may need much more
CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)


def enter(namespace_fd: int) -> None:
    if LIBC.setns(namespace_fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread is in the namespace for the block; sockets made there stay there."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{namespace}") as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(home.fileno())


@dataclass(frozen=True)
class Guest:
    """A running guest, the way to it, and how long it took to be ready (seconds)."""

    namespace: str
    ip: str
    ip6: str
    boot_seconds: float

    def connect(self, port: int, address: str = "") -> socket.socket:
        with inside(self.namespace):
            return socket.create_connection((address or self.ip, port), timeout=20)

    def ask(self, port: int, line: str, address: str = "") -> str:
        """Sends one line on a new connection and returns the first line of the answer."""
        with self.connect(port, address) as connection, connection.makefile("rwb") as stream:
            stream.write(line.encode() + b"\n")
            stream.flush()
            return stream.readline().decode().rstrip()


@pytest.fixture(scope="session")
def manifest() -> dict[str, Any]:
    return read_manifest(IMAGE, "make image")


@pytest.fixture(scope="session")
def disk_manifest() -> dict[str, Any]:
    return read_manifest(DISK_IMAGE, "make image-disk")


def read_manifest(image: Path, remedy: str) -> dict[str, Any]:
    path = image / "manifest.json"
    if not path.exists():
        pytest.fail(f"there is no image in {image}: run `{remedy}`")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=20, capture_output=True)


def wait_for(qemu: subprocess.Popen[bytes], sign: bytes) -> bytes:
    """The guest's console up to the sign. Fails with the console when it does not come."""
    assert qemu.stdout is not None
    console = b""
    deadline = time.monotonic() + BOOT_LIMIT
    while sign not in console:
        readable, _, _ = select.select([qemu.stdout], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(qemu.stdout.fileno(), 65536) if readable else b""
        if not piece:
            pytest.fail(f"the guest did not say {sign!r}; its console:\n{console.decode(errors='replace')}")
        console += piece
    return console


def require_machine() -> None:
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun"):
        pytest.skip("needs root and /dev/net/tun")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64")


@pytest.fixture(scope="module")
def boot(manifest: dict[str, Any]) -> Iterator[Callable[..., Guest]]:
    """Boots a guest: boot(ip=, ip6=, append=), addresses with prefix length, the client's being number 1."""
    require_machine()
    with contextlib.ExitStack() as stack:
        yield lambda ip, ip6, append="": stack.enter_context(running(IMAGE, manifest, ip, ip6, append))
    assert not [name for name in os.listdir("/run/netns") if name.startswith(f"hfimg-{os.getpid()}-")]


@pytest.fixture(scope="module")
def disk_boot(disk_manifest: dict[str, Any]) -> Callable[[Path], contextlib.AbstractContextManager[Guest]]:
    """Boots the disk guest for a block: disk_boot(image); its disk is written to."""
    require_machine()

    def start(disk: Path) -> contextlib.AbstractContextManager[Guest]:
        return running(DISK_IMAGE, disk_manifest, "10.77.0.10/24", "fd77::10/64", "", memory="256M", disk=disk)

    return start


@contextlib.contextmanager
def running(
    image: Path, manifest: dict[str, Any], ip: str, ip6: str, append: str, *, memory: str = "128M",
    disk: Path | None = None,
) -> Iterator[Guest]:
    namespace = f"hfimg-{os.getpid()}-{time.monotonic_ns() % 1000000}"
    run("ip", "netns", "add", namespace)
    try:
        run("ip", "-n", namespace, "tuntap", "add", "tap0", "mode", "tap")
        for address in (ip, ip6):
            own = address.partition("/")[0].rstrip("0123456789abcdef") + "1/" + address.partition("/")[2]
            run("ip", "-n", namespace, "addr", "add", own, "dev", "tap0", *(["nodad"] if ":" in own else []))
        run("ip", "-n", namespace, "link", "set", "tap0", "up")
        started = time.monotonic()
        qemu = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "qemu-system-x86_64", "-machine", "q35", "-cpu", "max", "-m", memory,
             "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
             "-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd.img"),
             "-append", f"{manifest['append']} {append}",
             "-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no",
             "-device", "virtio-net-pci,netdev=net0,romfile=",
             *([] if disk is None else ["-drive", f"file={disk},format=raw,if=virtio"])],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        try:
            wait_for(qemu, b"HOLDFAST GUEST READY")
            yield Guest(namespace, ip.partition("/")[0], ip6.partition("/")[0], time.monotonic() - started)
        finally:
            qemu.kill()  # for a guest with a disk: its power fails
            qemu.communicate(timeout=20)
    finally:
        run("ip", "netns", "delete", namespace)
