# SPDX-License-Identifier: GPL-2.0-or-later
"""One link: a TCP connection over one dedicated interface, kept up, with checked messages both ways.

A link knows nothing of streams and sessions. It says hello, hands on what arrives, sends what it is given
in order, and reports its end. A message that fails a check ends the connection: nothing after it can be
trusted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from typing import Protocol

import msgspec
import numpy as np

from appliance import config as cfg
from appliance.errors import Unavailable
from appliance.watched import watched
from vmlink.wire import (
    HEADER,
    Buffer,
    Header,
    Message,
    Type,
    WireError,
    check_payload,
    decode_header,
    digest,
    encode_header,
)

log = logging.getLogger("holdfast.link")

BUFFER = 4 << 20
"""Bytes asked for in each socket buffer: an epoch of 1,000 pages leaves in one go."""
HELLO_TIMEOUT = 2.0
JOIN_BELOW = 64 << 10
"""Bytes; messages smaller than this leave in one piece with their header."""


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each side says first. `received`: the last stream number it has of `session`."""

    host: str
    session: int
    fresh: bool
    received: int
    refused: str = ""


class Listener(Protocol):
    """Who a link reports to."""

    def hello(self, link: Link) -> Hello:
        """What this host says first."""

    def judge(self, link: Link, theirs: Hello) -> str:
        """As the accepting side: may the caller join? Returns why not, or nothing."""

    def joined(self, link: Link, theirs: Hello) -> None:
        """The link carries messages from now on."""

    async def arrived(self, link: Link, header: Header, payload: Buffer) -> None:
        """A checked message. Raises WireError to end the connection."""

    def left(self, link: Link, reason: str) -> None:
        """The link carries nothing any more."""


class Link:
    """See the module. `dials`: this side connects, the other accepts."""

    def __init__(self, config: cfg.Link, timing: cfg.Timing, listener: Listener, *, dials: bool) -> None:
        self.config, self.name = config, config.name
        self._timing, self._listener, self._dials = timing, listener, dials
        self._queue: deque[tuple[bytes, Message]] = deque()
        self._wake = asyncio.Event()
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.carrier = True
        self.up = False
        self.heard = 0.0
        """Monotonic time of the last byte received."""
        self.rtt: float | None = None
        self.reason = "not connected yet"

    def start(self) -> None:
        """Begin to connect or to listen. Raises Unavailable when the address cannot be used."""
        server = None if self._dials else self._listen()
        self._task = watched(self._dial() if server is None else self._accept(server), f"link {self.name}")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.drop("closed")

    # --- sending ---

    def send(self, header: bytes, message: Message) -> None:
        """Queue a message. What the stream keeps unacknowledged bounds this queue."""
        self._queue.append((header, message))
        self._wake.set()

    def send_loose(self, message: Message, queue_limit: int) -> bool:
        """Queue a message that may be lost; refused when more than `queue_limit` messages wait already."""
        if len(self._queue) >= queue_limit:
            return False
        self.send(encode_header(message, 0, digest(message.payload)), message)
        return True

    @property
    def idle(self) -> bool:
        return not self._queue

    async def _write(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._queue:
                header, message = self._queue.popleft()
                if message.size < JOIN_BELOW:
                    await loop.sock_sendall(sock, b"".join((header, *message.payload)))
                else:
                    await loop.sock_sendall(sock, header)
                    for part in message.payload:
                        await loop.sock_sendall(sock, part)
                    await asyncio.sleep(0)  # a socket with room never waits: others need their turn
            self._wake.clear()
            await self._wake.wait()

    # --- receiving ---

    async def _read_exactly(self, sock: socket.socket, size: int) -> memoryview:
        loop = asyncio.get_running_loop()
        view = np.empty(size, np.uint8).data.cast("B")
        filled = 0
        while filled < size:
            count = await loop.sock_recv_into(sock, view[filled:])
            if not count:
                raise ConnectionResetError("the peer closed the connection")
            filled += count
            self.heard = time.monotonic()
        return view

    async def _read_message(self, sock: socket.socket) -> tuple[Header, Buffer]:
        header = decode_header(await self._read_exactly(sock, HEADER.size))
        payload = await self._read_exactly(sock, header.length)
        check_payload(header, payload)
        return header, payload

    # --- the life of a connection ---

    def _new_socket(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.config.address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.config.interface.encode() + b"\0")
        self._tune(sock)
        return sock

    def _tune(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)

    def _listen(self) -> socket.socket:
        try:
            server = self._new_socket()
            server.bind((self.config.address, self.config.port))
            server.listen(4)
        except OSError as error:
            raise Unavailable(f"link {self.name}: {self.config.address} port {self.config.port} on "
                              f"{self.config.interface}: {error.strerror}",
                              "is the interface there and up, with that address? Is another service running?"
                              ) from error
        return server

    async def _dial(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if self.carrier:
                sock = None
                try:
                    sock = self._new_socket()
                    sock.bind((self.config.address, 0))
                    await asyncio.wait_for(loop.sock_connect(sock, (self.config.peer, self.config.port)),
                                           HELLO_TIMEOUT)
                    await self._serve(sock)
                except (OSError, TimeoutError, WireError) as error:
                    self._failed(error)
                finally:
                    if sock is not None:
                        sock.close()
            await asyncio.sleep(self._timing.reconnect)

    async def _accept(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        serving: asyncio.Task[None] | None = None
        try:
            while True:
                sock, address = await loop.sock_accept(server)
                if address[0] != self.config.peer:
                    log.warning("link %s: refused a connection from %s", self.name, address[0])
                    sock.close()
                    continue
                self._tune(sock)
                self.drop("the peer connected anew")
                if serving is not None:
                    await serving
                serving = watched(self._serve_quietly(sock), f"link {self.name} connection")
        finally:
            server.close()
            if serving is not None:
                serving.cancel()

    async def _serve_quietly(self, sock: socket.socket) -> None:
        try:
            await self._serve(sock)
        except (OSError, TimeoutError, WireError) as error:
            self._failed(error)
        finally:
            sock.close()

    def _failed(self, error: Exception) -> None:
        """No connection came about. Tried again for ever, so told once for each new reason."""
        reason = str(error) or type(error).__name__
        if isinstance(error, WireError) and reason != self.reason:
            log.error("link %s: %s", self.name, reason)
        self.reason = reason

    async def _serve(self, sock: socket.socket) -> None:
        """From the first hello to the end of one connection."""
        theirs = await asyncio.wait_for(self._greet(sock), HELLO_TIMEOUT)
        self._socket, self.up, self.heard, self.reason = sock, True, time.monotonic(), ""
        self._queue.clear()
        writer = asyncio.create_task(self._write(sock))
        writer.add_done_callback(lambda task: self._writer_ended(sock, task))
        try:
            self._listener.joined(self, theirs)
            while True:
                header, payload = await self._read_message(sock)
                await self._listener.arrived(self, header, payload)
                if header.length >= JOIN_BELOW:
                    await asyncio.sleep(0)  # nor does one that is full of data
        except (OSError, WireError) as error:
            if self._socket is sock:
                self.reason = str(error) or type(error).__name__
            if isinstance(error, WireError):
                log.error("link %s: %s", self.name, error)
        finally:
            writer.cancel()
            self._end(sock)

    def _writer_ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and self._socket is sock:
            self.drop(str(task.exception()))

    async def _greet(self, sock: socket.socket) -> Hello:
        if self._dials:
            await self._say_hello(sock, self._listener.hello(self))
            theirs = await self._hear_hello(sock)
            if theirs.refused:
                self._listener.judge(self, theirs)
                raise WireError(f"the peer refused: {theirs.refused}")
            return theirs
        theirs = await self._hear_hello(sock)
        refused = self._listener.judge(self, theirs)
        await self._say_hello(sock, msgspec.structs.replace(self._listener.hello(self), refused=refused))
        if refused:
            raise WireError(f"refused the peer: {refused}")
        return theirs

    async def _say_hello(self, sock: socket.socket, hello: Hello) -> None:
        message = Message(Type.HELLO, payload=(msgspec.json.encode(hello),))
        header = encode_header(message, 0, digest(message.payload))
        await asyncio.get_running_loop().sock_sendall(sock, b"".join((header, *message.payload)))

    async def _hear_hello(self, sock: socket.socket) -> Hello:
        header, payload = await self._read_message(sock)
        if header.type is not Type.HELLO:
            raise WireError(f"{header.type.name} before the hello")
        try:
            return msgspec.json.decode(payload, type=Hello)
        except msgspec.DecodeError as error:
            raise WireError(f"a hello that cannot be read: {error}") from None

    def drop(self, reason: str) -> None:
        """End the connection now. The reader ends by itself once it has handed on what it holds."""
        if self._socket is not None:
            self.reason = reason
            self._end(self._socket)

    def _end(self, sock: socket.socket) -> None:
        if self._socket is not sock:
            return
        self._socket, self.up = None, False
        self._queue.clear()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        self._listener.left(self, self.reason)
