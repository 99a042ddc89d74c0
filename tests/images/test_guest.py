# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest image, booted: every service that the demo and the tests rely on answers through a tap."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.images.conftest import Guest

pytestmark = pytest.mark.slow

ECHO, CONTROL, HTTP, REDIS = 7, 9, 80, 6379


@pytest.fixture(scope="module")
def guest(boot: Callable[..., Guest]) -> Guest:
    """Booted with addresses of our own choice, so that the hf.* words are what put them there."""
    return boot("10.78.0.20/24", "fd78::20/64", "hf.ip=10.78.0.20/24 hf.ip6=fd78::20/64 hf.gw=10.78.0.1")


def eventually(check: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (done := check()) and time.monotonic() < deadline:
        pass
    return done


def test_addresses_without_any_words_on_the_command_line(boot: Callable[..., Guest]) -> None:
    plain = boot("10.77.0.10/24", "fd77::10/64")
    assert plain.ask(REDIS, "PING") == "+PONG"
    assert plain.ask(REDIS, "PING", plain.ip6) == "+PONG"


def test_redis_keeps_what_it_acknowledged(guest: Guest) -> None:
    assert guest.ask(REDIS, "SET key value") == "+OK"
    assert guest.ask(REDIS, "INCR counter") == ":1"
    assert guest.ask(REDIS, "INCR counter", guest.ip6) == ":2"
    assert guest.ask(REDIS, "GET key", guest.ip6) == "$5"


def test_http_serves_the_file_of_the_manifest(guest: Guest, manifest: dict[str, Any]) -> None:
    with guest.connect(HTTP) as connection:
        connection.sendall(b"GET /blob.bin HTTP/1.0\r\n\r\n")
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200"))
    assert len(body) >= 1 << 20
    assert hashlib.sha256(body).hexdigest() == manifest["sha256"]["/blob.bin"]


def test_echo_serves_many_clients_at_once(guest: Guest) -> None:
    clients = [guest.connect(ECHO) for _ in range(300)]
    try:
        for number, client in enumerate(clients):
            client.sendall(b"%08d" % number)
        for number, client in enumerate(clients):
            with client.makefile("rb") as stream:
                assert stream.read(8) == b"%08d" % number
    finally:
        for client in clients:
            client.close()


def test_echo_returns_more_than_it_can_hold(guest: Guest) -> None:
    sent = bytes(range(256)) * 512
    with guest.connect(ECHO) as client, client.makefile("rb") as stream:
        client.sendall(sent[:65536])
        assert stream.read(65536) == sent[:65536]
        client.sendall(sent[65536:])
        assert stream.read(65536) == sent[65536:]


def test_dirtying_goes_on_until_it_is_stopped(guest: Guest) -> None:
    def passes() -> int:
        word, pages, period, count = guest.ask(CONTROL, "status").split()
        assert (word, pages, period) == ("dirty", "500", "5")
        return int(count)

    assert guest.ask(CONTROL, "dirty 500 5") == "ok 500 5"
    first = passes()
    assert eventually(lambda: passes() >= first + 10)
    assert guest.ask(CONTROL, "dirty 0") == "ok 0 10"
    assert guest.ask(CONTROL, "status") == "dirty 0 10 0"


@pytest.mark.parametrize("line", ["", "dirty", "dirty -1", "dirty 99999999", "dirty 10 0", "reboot"])
def test_a_wrong_order_is_refused(guest: Guest, line: str) -> None:
    assert guest.ask(CONTROL, line).startswith("error ")
    assert guest.ask(CONTROL, "status").startswith("dirty ")


def test_an_endless_line_ends_the_connection_and_nothing_else(guest: Guest) -> None:
    with guest.connect(CONTROL) as connection:
        try:
            connection.sendall(b"x" * 65536)
            assert connection.recv(1) == b""
        except ConnectionError:
            pass
    assert guest.ask(ECHO, "still here") == "still here"


def test_boot_time_is_known(guest: Guest, record_property: Callable[[str, object], None]) -> None:
    """Not a limit: a figure to compare, in the report of the run."""
    record_property("boot_seconds", round(guest.boot_seconds, 2))
    assert guest.boot_seconds > 0
