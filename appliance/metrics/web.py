# SPDX-License-Identifier: GPL-2.0-or-later
"""A small HTTP/1.1 server for monitoring: GET and HEAD of a few pages, one request a connection, nothing else.

It runs in the event loop that lets VMs speak, so whoever can reach the port is kept from it: few connections at a time,
each short, taken at a bounded rate; a request is a few lines. Nothing that a client sends is stored or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

from appliance import __version__
from appliance.arbiter.datagram import address

CLIENTS = 16
"""At a time; one more takes the place of the one that has been there longest."""
REQUEST = 4096
"""Bytes of a request."""
PATIENCE = 5.0
"""Seconds for a whole connection."""
RETRY = 10.0
"""Seconds until an address that cannot be had is tried again."""
BETWEEN = 0.005
"""Seconds between two connections that are taken."""
_LINE = re.compile(rb"(GET|HEAD|[A-Z]{1,16}) (/[!-~]{0,1000}) HTTP/1\.[01]\r\n")
log = logging.getLogger("holdfast.metrics")


@dataclass(frozen=True)
class Page:
    """An answer."""

    status: HTTPStatus
    body: bytes
    kind: str = "text/plain; charset=utf-8"


Query = Mapping[str, list[str]]
Pages = Mapping[str, Callable[[Query], Awaitable[Page]]]


class Web:
    """Serves `pages` by path at HOST:PORT. `run` it."""

    def __init__(self, listen: str, pages: Pages) -> None:
        self._listen, self._pages = listen, pages
        self.listener: socket.socket | None = None
        self.reason = "not served yet"
        """Why nothing is served; empty when it is."""
        self._clients: dict[asyncio.Task[None], None] = {}  # oldest first

    async def run(self) -> None:
        """Serve until cancelled. An address that cannot be had is told, and tried again: it may not cost a VM."""
        try:
            while self.listener is None:
                try:
                    self.listener = await _bound(self._listen)
                    self.reason = ""
                except OSError as error:
                    reason = f"{self._listen}: {error.strerror or error}"
                    if reason != self.reason:
                        log.error("figures are not served at %s", reason)
                    self.reason = reason
                    await asyncio.sleep(RETRY)
            await self._accept(self.listener)
        finally:
            clients = list(self._clients)
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)
            if self.listener is not None:
                self.listener.close()
                self.listener = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors are left: those that come may wait
                log.warning("a monitoring client cannot be taken: %s", error)
                await asyncio.sleep(1.0)
                continue
            if len(self._clients) >= CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                oldest.cancel()
            task = loop.create_task(self._serve(connection))
            self._clients[task] = None
            task.add_done_callback(lambda ended: self._clients.pop(ended, None))
            await asyncio.sleep(BETWEEN)

    async def _serve(self, connection: socket.socket) -> None:
        """One request, one answer, the end."""
        loop = asyncio.get_running_loop()
        with contextlib.closing(connection):
            try:
                async with asyncio.timeout(PATIENCE):
                    request = await _request(loop, connection)
                    if request is None:
                        return
                    page, head = await self._answer(request)
                    await loop.sock_sendall(connection, _encoded(page, head))
                    connection.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(connection, REQUEST):  # else what was not read would cut the answer off
                        pass
            except (TimeoutError, OSError):
                pass  # too slow, or gone
            except asyncio.CancelledError:
                pass  # made room
            except Exception:
                log.exception("a monitoring client ended in an error of ours")

    async def _answer(self, request: bytes) -> tuple[Page, bool]:
        """The page, and whether only its head was asked for."""
        found = _LINE.match(request)
        if found is None:
            return _error(HTTPStatus.BAD_REQUEST), False
        method, target = found.group(1).decode(), found.group(2).decode()
        if method not in ("GET", "HEAD"):
            return _error(HTTPStatus.METHOD_NOT_ALLOWED), False
        try:
            parts = urlsplit(target)
            query = parse_qs(parts.query, max_num_fields=4)
        except ValueError:
            return _error(HTTPStatus.BAD_REQUEST), False
        page = self._pages.get(parts.path)
        if page is None:
            return _error(HTTPStatus.NOT_FOUND, f"there are {', '.join(sorted(self._pages))}"), False
        return await page(query), method == "HEAD"


async def _bound(listen: str) -> socket.socket:
    """Raises OSError."""
    host, port = address(listen)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, to = found[0][0], found[0][4]
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(to)
        listener.listen(CLIENTS)
    except BaseException:
        listener.close()
        raise
    return listener


async def _request(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes | None:
    """The head of a request; None when there is none worth an answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await loop.sock_recv(connection, REQUEST + 1 - len(data))
        data += chunk
        if not chunk:
            return None
        if len(data) > REQUEST:
            return b""  # too long: a bad request
    return data


def _error(status: HTTPStatus, more: str = "") -> Page:
    return Page(status, f"{status.value} {status.phrase}{': ' + more if more else ''}\n".encode())


def _encoded(page: Page, head: bool) -> bytes:
    lines = [f"HTTP/1.1 {page.status.value} {page.status.phrase}", f"Server: holdfast/{__version__}",
             f"Content-Type: {page.kind}", f"Content-Length: {len(page.body)}", "Cache-Control: no-store",
             "Connection: close", "X-Content-Type-Options: nosniff"]
    if page.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join((*lines, "", "")).encode() + (b"" if head else page.body)
