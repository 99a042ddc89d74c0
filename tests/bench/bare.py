# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk guest without Holdfast: the same image, memory and processor in a plain QEMU, for the benches' ratios."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import TimedOut
from appliance.lab import guest_checks
from appliance.lab.blueprint import GUESTS, Options
from vmlink.spec import processors

BOOT_S = 120.0


class Bare:
    """A running guest; `check` asks for one of its checks."""

    def __init__(self, port: int) -> None:
        self._port = port

    def check(self, words: str) -> tuple[int, str]:
        """Exit status and output. Raises OSError or Unavailable."""
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=guest_checks.PATIENCE)
        return guest_checks.ask(connection, words)


@contextlib.contextmanager
def guest(options: Options) -> Iterator[Bare]:
    """The guest of `options`, booted, on a copy of its disk. Raises TimedOut."""
    kernel, initrd = options.image()
    with tempfile.TemporaryDirectory(prefix="holdfast-bench-", dir="/var/tmp") as place:
        disk = Path(place) / "disk.img"
        subprocess.run(["cp", "--sparse=always", str(options.all_disks()[0].source), disk], check=True, timeout=120)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        forward = f"hostfwd=tcp:127.0.0.1:{port}-10.77.0.10:{guest_checks.PORT}"
        qemu = subprocess.Popen(
            [options.qemu, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio",
             "-accel", "tcg,thread=multi", "-cpu", "max", "-machine", "q35,sata=off,smbus=off,vmport=off,i8042=off",
             "-m", f"{options.memory >> 20}M", "-smp", processors(options.vcpus, "tcg"),
             "-global", "virtio-pci.disable-modern=on", "-global", "virtio-pci.disable-legacy=off",
             "-kernel", kernel, "-initrd", str(initrd), "-append", options.command_line(GUESTS[0]),
             "-drive", f"file={disk},format=raw,if=virtio",
             "-netdev", f"user,id=net0,net=10.77.0.0/24,restrict=on,{forward}",
             "-device", "virtio-net-pci,netdev=net0,romfile="],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _await_ready(qemu)
            yield Bare(port)
        finally:
            qemu.kill()
            qemu.communicate(timeout=20)


def _await_ready(qemu: subprocess.Popen[bytes]) -> None:
    assert qemu.stdout is not None
    console, deadline = b"", time.monotonic() + BOOT_S
    while b"HOLDFAST GUEST READY" not in console:
        readable, _, _ = select.select([qemu.stdout], [], [], max(0.0, deadline - time.monotonic()))
        piece = qemu.stdout.read1(65536) if readable else b""  # type: ignore[attr-defined]
        if not piece:
            raise TimedOut("the bare guest does not boot", console[-300:].decode(errors="replace"))
        console += piece
