# SPDX-License-Identifier: GPL-2.0-or-later
"""The HTTP server: right answers for who asks properly, little for who does not, and its loop turns on."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from appliance.metrics import web as module
from appliance.metrics.web import CLIENTS, Page, Query, Web


class Running:
    """A server in a thread of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.loop = asyncio.new_event_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as free:
            free.bind((host, 0))
            self.port = free.getsockname()[1]
        self.host = host
        listen = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
        self.web = Web(listen, {"/metrics": self._big, "/healthz": self._small, "/broken": self._broken})
        self.turns = 0
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.task = asyncio.run_coroutine_threadsafe(self.web.run(), self.loop)

    def served(self) -> Running:
        deadline = time.monotonic() + 10
        while self.web.reason:
            assert time.monotonic() < deadline, self.web.reason
            time.sleep(0.002)
        return self

    def stop(self) -> None:
        self.task.cancel()
        asyncio.run_coroutine_threadsafe(self._rest(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)

    async def _rest(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*rest, return_exceptions=True)
        assert self.web.listener is None and not self.web._clients

    async def _big(self, query: Query) -> Page:
        return Page(HTTPStatus.OK, b"x" * (8 << 20))

    async def _small(self, query: Query) -> Page:
        return Page(HTTPStatus.SERVICE_UNAVAILABLE if query.get("vm") else HTTPStatus.OK, b"ok\n", "application/json")

    async def _broken(self, query: Query) -> Page:
        raise ZeroDivisionError

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), 10)

    def says(self, request: bytes) -> bytes:
        """All that comes back."""
        with self.connect() as client, contextlib.suppress(ConnectionResetError):
            client.sendall(request)
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := client.recv(1 << 20):
                answer += chunk
            return answer
        return b""

    def get(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@pytest.fixture
def server() -> Iterator[Running]:
    running = Running().served()
    yield running
    running.stop()


def test_pages(server: Running) -> None:
    assert server.get("/healthz") == (200, b"ok\n")
    assert server.get("/healthz?vm=web1&x=1") == (503, b"ok\n")
    assert server.get("/metrics") == (200, b"x" * (8 << 20))
    status, body = server.get("/")
    assert status == 404 and b"/healthz" in body
    assert server.get("/metrics", "HEAD") == (200, b"")


def test_a_head_says_how_long_the_page_is(server: Running) -> None:
    answer = server.says(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.endswith(b"\r\n\r\n") and b"\r\nContent-Length: 8388608\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer


@pytest.mark.parametrize(("request_bytes", "status"), [
    (b"POST /metrics HTTP/1.1\r\n\r\n", 405), (b"DELETE /healthz HTTP/1.1\r\n\r\n", 405),
    (b"get /healthz HTTP/1.1\r\n\r\n", 400), (b"GET healthz HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/2.0\r\n\r\n", 400), (b"GET /healthz\r\n\r\n", 400), (b"\r\n\r\n", 400),
    (b"GET /\xff HTTP/1.1\r\n\r\n", 400), (b"GET /" + b"a" * 1001 + b" HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz?" + b"a=1&" * 20 + b" HTTP/1.1\r\n\r\n", 400), (b"GET //[::1 HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\n" + b"X: " + b"y" * 5000 + b"\r\n\r\n", 400),
    (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", 404), (b"GET http://evil/healthz HTTP/1.1\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
])
def test_what_is_no_question_for_us(server: Running, request_bytes: bytes, status: int) -> None:
    answer = server.says(request_bytes)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]
    assert server.get("/healthz")[0] == 200


def test_a_defect_in_a_page_is_ours_alone(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert server.says(b"GET /broken HTTP/1.1\r\n\r\n") == b""
    assert "ZeroDivisionError" in caplog.text and server.get("/healthz")[0] == 200


def test_random_bytes(server: Running) -> None:
    source = random.Random(3)
    for _ in range(100):
        server.says(source.randbytes(source.randrange(6000)) + b"\r\n\r\n" * source.randrange(2))
    assert server.get("/healthz")[0] == 200


def test_those_who_say_nothing_or_read_nothing_keep_nobody_out(
        server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    clients = []
    try:
        for number in range(4 * CLIENTS):
            client = server.connect()
            clients.append(client)
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n" if number % 2 else b"GET /me")
        assert server.get("/healthz") == (200, b"ok\n")
        assert len(server.web._clients) <= CLIENTS
    finally:
        for client in clients:
            client.close()


def test_a_slow_client_is_cut_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    server = Running().served()
    try:
        with server.connect() as slow:
            slow.settimeout(10)
            for byte in b"GET /healthz HTTP/1.1\r\nX: " + b"y" * 100:
                try:
                    slow.sendall(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.02)
            with contextlib.suppress(ConnectionResetError):
                assert slow.recv(100) == b""
        with server.connect() as deaf:
            deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            deadline = time.monotonic() + 10
            while server.web._clients:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    finally:
        server.stop()


def test_a_flood_of_connections_is_taken_slowly(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs the loop a fraction of a millisecond: it takes some hundred a second, no more."""
    monkeypatch.setattr(module, "BETWEEN", 0.02)
    taken, request = [], module._request

    async def counted(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes | None:
        taken.append(connection)
        return await request(loop, connection)

    monkeypatch.setattr(module, "_request", counted)
    begun = time.monotonic()

    def flood() -> None:
        while time.monotonic() < begun + 0.5:
            with contextlib.suppress(OSError):
                server.connect().close()

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) <= (time.monotonic() - begun) / 0.02 + 2
    assert server.get("/healthz")[0] == 200


def test_an_address_that_is_taken_is_told_and_tried_again(
        monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "RETRY", 0.05)
    with socket.socket() as other:
        server = Running()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.stop()
        other.bind(("127.0.0.1", server.port))
        other.listen()
        server.loop = asyncio.new_event_loop()
        threading.Thread(target=server.loop.run_forever, daemon=True).start()
        server.web = Web(f"127.0.0.1:{server.port}", server.web._pages)
        server.task = asyncio.run_coroutine_threadsafe(server.web.run(), server.loop)
        deadline = time.monotonic() + 10
        while "Address already in use" not in server.web.reason:
            assert time.monotonic() < deadline, server.web.reason
            time.sleep(0.005)
        time.sleep(0.2)
    server.served()
    assert server.get("/healthz")[0] == 200
    assert caplog.text.count("figures are not served") == 1
    server.stop()


def test_ipv6() -> None:
    try:
        server = Running("::1").served()
    except OSError:
        pytest.skip("needs IPv6")
    assert server.get("/healthz")[0] == 200
    server.stop()
