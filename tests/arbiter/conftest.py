# SPDX-License-Identifier: GPL-2.0-or-later
"""Real arbiters for the tests: a witness and an etcd, each a process of its own on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from appliance.arbiter import key

PAIR = "alpha-beta"


def free_port(kind: socket.SocketKind) -> int:
    with closing(socket.socket(socket.AF_INET, kind)) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


class WitnessProcess:
    """`holdfast witness` on loopback; its key and its state outlive it."""

    def __init__(self, place: Path) -> None:
        self.place, self.port = place, free_port(socket.SOCK_DGRAM)
        self.keys, self.state = place / "keys", place / "state"
        self.key = self.keys / f"{PAIR}.key"
        key.make(self.key)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def command(self) -> list[str]:
        return [sys.executable, "-m", "appliance.cli", "witness", "--listen", f"127.0.0.1:{self.port}",
                "--state-dir", str(self.state), "--keys", str(self.keys)]  # fmt: skip

    def start(self) -> None:
        reader, writer = os.pipe()
        with open(self.place / "log", "ab") as log:
            command = [*self.command(), "--ready-fd", str(writer)]
            self._process = subprocess.Popen(command, pass_fds=(writer,), stderr=log, stdout=log)
        os.close(writer)
        with open(reader, "rb") as ready:
            assert ready.read() == b"ready\n", (self.place / "log").read_text()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def terminate(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(10)


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[WitnessProcess]:
    """A witness that runs."""
    made = WitnessProcess(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real etcd."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed")
    with running_etcd(tmp_path_factory.mktemp("etcd")) as url:
        yield url


@contextmanager
def running_etcd(place: Path, options: Sequence[str] = (), scheme: str = "http") -> Iterator[str]:
    """An etcd of one member with its data in `place`; gives the URL for clients."""
    client = f"{scheme}://127.0.0.1:{free_port(socket.SOCK_STREAM)}"
    peer, health = (f"http://127.0.0.1:{free_port(socket.SOCK_STREAM)}" for _ in range(2))
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(
            ["etcd", "--name", "one", "--data-dir", str(place / "data"), "--listen-client-urls", client,
             "--advertise-client-urls", client, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
             "--initial-cluster", f"one={peer}", "--listen-metrics-urls", health, *options],
            stdout=log, stderr=log)  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not _healthy(health):
            assert time.monotonic() < deadline and process.poll() is None, (place / "log").read_text()[-2000:]
        yield client
    finally:
        process.kill()
        process.wait(10)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return b"true" in answer.read()
    except OSError:
        return False
