# SPDX-License-Identifier: GPL-2.0-or-later
"""A booted guest moves to another QEMU by copied pages and device state, and its open connections go on."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.vmlink.machine import booted, guest_spec, machine
from vmlink.tracker import choose

pytestmark = pytest.mark.slow

_serial = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=10)


@pytest.fixture
def namespace() -> Iterator[str]:
    """The test, and the QEMUs it starts, live in a network namespace of their own."""
    name = f"hfvm-{os.getpid()}-{next(_serial)}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    ip("netns", "add", name)
    try:
        there = os.open(f"/run/netns/{name}", os.O_RDONLY)
        assert _libc.setns(there, 0x40000000) == 0, os.strerror(ctypes.get_errno())
        os.close(there)
        yield name
        left = [link for _, link in socket.if_nameindex() if link != "lo"]
        assert not left, f"left behind: {left}"
    finally:
        assert _libc.setns(home, 0x40000000) == 0
        os.close(home)
        ip("netns", "del", name)


async def echoed(client: socket.socket, text: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, text)
    answer = b""
    async with asyncio.timeout(20):
        while len(answer) < len(text):
            answer += await loop.sock_recv(client, 100)
    return answer


@pytest.mark.parametrize("kind", ["uffd-wp", "compare"])
def test_an_open_connection_goes_on(namespace: str, tmp_path: Path, kind: str) -> None:
    async def scene() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as client:
            client.setblocking(False)
            async with machine(tmp_path, guest_spec(), incoming=True, tap="vmB") as (backup, replica):
                async with machine(tmp_path, guest_spec(name="vmt-a"), tap="vmA") as (primary, memory):
                    ip("link", "set", "vmA", "up")
                    ip("addr", "add", "10.77.0.1/24", "dev", "vmA")
                    await booted(primary)
                    await loop.sock_connect(client, ("10.77.0.10", 7))
                    assert await echoed(client, b"before") == b"before"

                    tracker = choose(primary, memory, kind)
                    tracker.arm()
                    np.copyto(replica.pages, tracker.source)
                    for turn in range(20):  # rounds while it runs and answers
                        assert await echoed(client, b"%06d" % turn) == b"%06d" % turn
                        found = await loop.run_in_executor(None, tracker.collect)
                        replica.pages[found] = tracker.source[found]
                    await primary.monitor.stop()
                    found = tracker.collect()
                    replica.pages[found] = tracker.source[found]
                    state = await primary.monitor.save_devices()
                    assert np.array_equal(replica.pages, memory.pages)
                    tracker.close()
                begun = time.perf_counter()
                await backup.monitor.load_devices(state)
                print(f"loaded in {(time.perf_counter() - begun) * 1e3:.1f} ms")
                ip("link", "set", "vmB", "up")
                ip("addr", "add", "10.77.0.1/24", "dev", "vmB")
                assert await echoed(client, b"after") == b"after"
                # And it can be protected in its turn.
                tracker = choose(backup, replica, kind)
                tracker.arm()
                assert await echoed(client, b"again") == b"again"
                assert 0 < len(tracker.collect()) < len(replica.pages)
                tracker.close()

    asyncio.run(scene())
