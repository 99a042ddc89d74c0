# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd is told, by a socket that stands in for systemd's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.notify import Notifier


class Systemd:
    """The receiving end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(10)

    def hears(self) -> str:
        return self.socket.recv(4096).decode()

    def silent(self) -> bool:
        self.socket.setblocking(False)
        try:
            self.socket.recv(4096)
            return False
        except BlockingIOError:
            return True
        finally:
            self.socket.settimeout(10)


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    address = str(tmp_path / "notify") if request.param == "file" else f"@holdfast-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    made = Systemd(address)
    yield made
    made.socket.close()


def test_what_is_told(systemd: Systemd) -> None:
    notifier = Notifier()
    notifier.ready()
    notifier.status("web1 primary\nprotected")
    notifier.status("web1 primary protected")
    notifier.stopping()
    assert [systemd.hears() for _ in range(3)] == ["READY=1", "STATUS=web1 primary protected", "STOPPING=1"]
    notifier.status("x" * 9000)
    assert systemd.hears() == "STATUS=" + "x" * 400 and systemd.silent()
    assert "NOTIFY_SOCKET" not in os.environ, "no child may speak for us"


def test_the_watchdog_hears_of_a_service_only_while_it_is_alive(
        systemd: Systemd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notifier, trouble = Notifier(), [""]
    assert notifier.watchdog == 0.04 and "WATCHDOG_USEC" not in os.environ

    async def live() -> None:
        watching = asyncio.create_task(notifier.watch(lambda: trouble[0]))
        loop = asyncio.get_running_loop()
        for _ in range(3):
            assert await loop.run_in_executor(None, systemd.hears) == "WATCHDOG=1"
        trouble[0] = "web1: no decision for 5 s"
        while "no decision" not in caplog.text:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        while not systemd.silent():
            pass
        await asyncio.sleep(0.1)
        assert systemd.silent() and caplog.text.count("no decision") == 1
        trouble[0] = ""
        assert await loop.run_in_executor(None, systemd.hears) == "WATCHDOG=1"
        watching.cancel()

    asyncio.run(live())


@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("junk", ""), ("1000000", "1")])
def test_a_watchdog_that_is_not_meant_for_us(usec: str, pid: str, systemd: Systemd,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid)
    notifier = Notifier()
    assert notifier.watchdog == 0
    asyncio.run(notifier.watch(lambda: ""))
    assert systemd.silent()


def test_without_systemd_or_with_one_that_is_gone_nothing_happens(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nothing"))
    Notifier().ready()
    monkeypatch.setenv("NOTIFY_SOCKET", "x" * 500)
    Notifier().ready()


def test_a_systemd_that_does_not_read_holds_nobody_up(systemd: Systemd) -> None:
    notifier = Notifier()
    for number in range(5000):
        notifier.status(f"{number}")
