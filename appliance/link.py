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
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec
import numpy as np

from appliance import config as cfg
from appliance.errors import Unavailable
from appliance.spoken import LIMIT, understood
from appliance.watched import watched
from vmlink import inject
from vmlink.wire import (
    HEADER,
    Buffer,
    Header,
    Message,
    Type,
    VersionError,
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
GREETING = 4
"""Callers that may be saying hello at once, beside the connection that is up."""
JOIN_BELOW = 64 << 10
"""Bytes; messages smaller than this leave in one piece with their header."""
LOOSE_LIMIT = 8 << 20
"""Bytes of messages that may be lost that may wait on a link."""


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each side says first."""

    host: str
    session: int
    fresh: bool
    refused: str = ""


Greeting = Callable[[socket.socket], Awaitable[Hello]]


class Listener(Protocol):
    """Who a link reports to."""

    def hello(self, link: Link) -> Hello:
        """What this host says first."""

    def judge(self, link: Link, theirs: Hello) -> str:
        """May the other side join? Returns why not, or nothing. Asked of one that refused, too."""

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
        self._queue: deque[tuple[bytes, Message, int]] = deque()  # the last: bytes of one that may be lost
        self._loose = 0
        self._wake = asyncio.Event()
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._told = ""
        self.carrier = True
        self.up = False
        self.heard = 0.0
        """Monotonic time of the last byte received."""
        self.listening = False
        """Is there nothing to read, as far as is known? Not while a message is being handled."""
        self.rtt: float | None = None
        self.sent_bytes = self.received_bytes = 0
        """Of messages with their headers, since the service started."""
        self.reason = "not connected yet"
        self.ended_here = False
        """Did this host end the last connection although the peer was there?"""

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
        self._queue.append((header, message, 0))
        self._wake.set()

    def send_loose(self, message: Message) -> bool:
        """Queue a message that may be lost; refused when LOOSE_LIMIT bytes of such wait already."""
        if self._loose + message.size > LOOSE_LIMIT:
            return False
        self._loose += message.size
        self._queue.append((encode_header(message, 0, digest(message.payload)), message, message.size))
        self._wake.set()
        return True

    def _forget_queue(self) -> None:
        self._queue.clear()
        self._loose = 0

    async def _write(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while self._queue:
                header, message, loose = self._queue.popleft()
                self._loose -= loose
                if message.size < JOIN_BELOW:
                    await loop.sock_sendall(sock, b"".join((header, *message.payload)))
                else:
                    await loop.sock_sendall(sock, header)
                    for part in message.payload:
                        await loop.sock_sendall(sock, part)
                    inject.point("link.sending")
                    await asyncio.sleep(0)  # a socket with room never waits: others need their turn
                self.sent_bytes += len(header) + message.size
                if message.sent is not None:
                    message.sent()
            self._wake.clear()
            await self._wake.wait()

    # --- receiving ---

    async def _read_exactly(self, sock: socket.socket, size: int) -> memoryview:
        loop = asyncio.get_running_loop()
        view = np.empty(size, np.uint8).data.cast("B")
        filled = 0
        while filled < size:
            self.listening |= sock is self._socket
            count = await loop.sock_recv_into(sock, view[filled:])
            if not count:
                raise ConnectionResetError("the peer closed the connection")
            filled += count
            self.received_bytes += count
            if sock is self._socket:  # and not one that still says hello
                self.heard, self.listening = time.monotonic(), False
        return view

    async def _read_message(self, sock: socket.socket) -> tuple[Header, Buffer]:
        header = decode_header(await self._read_exactly(sock, HEADER.size))
        payload = await self._read_exactly(sock, header.length)
        check_payload(header, payload)
        return header, payload

    def tcp_info(self) -> bytes:
        """The kernel's struct tcp_info of the connection, empty without one."""
        return b"" if self._socket is None else self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)

    def silence(self, now: float) -> float:
        """Seconds for which the peer has said nothing although this side listened."""
        return now - self.heard if self.up and self.listening else 0.0

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
        server = None
        try:
            server = self._new_socket()
            server.bind((self.config.address, self.config.port))
            server.listen(4)
        except OSError as error:
            if server is not None:
                server.close()
            raise Unavailable(f"link {self.name}: {self.config.address} port {self.config.port} on "
                              f"{self.config.interface}: {error.strerror}",
                              "is the interface there and up, with that address? Is another service running?"
                              ) from error
        return server

    async def _dial(self) -> None:
        while True:
            if self.carrier:
                try:
                    sock = self._new_socket()
                except OSError as error:  # no such interface, at present
                    self._failed(error)
                else:
                    await self._serve(sock, self._call)
            await asyncio.sleep(self._timing.reconnect)

    async def _accept(self, server: socket.socket) -> None:
        serving: set[asyncio.Task[None]] = set()
        try:
            while True:
                sock = await self._next_caller(server)
                if len(serving) > GREETING:
                    sock.close()  # it will be tried again
                    continue
                # What is up stays up until the caller has proved by its hello that it is the peer.
                task = watched(self._serve(sock, self._answer), f"link {self.name} connection")
                serving.add(task)
                task.add_done_callback(serving.discard)
        finally:
            server.close()
            for task in serving:
                task.cancel()
            if serving:
                await asyncio.wait(serving)

    async def _next_caller(self, server: socket.socket) -> socket.socket:
        while True:
            try:
                sock, address = await asyncio.get_running_loop().sock_accept(server)
            except OSError as error:  # of descriptors or memory there may be enough again soon
                self._failed(error)
                await asyncio.sleep(self._timing.reconnect)
                continue
            if address[0] == self.config.peer:
                self._tune(sock)
                return sock
            sock.close()
            self._tell(f"refused a connection from {address[0]}")

    def _failed(self, error: Exception) -> None:
        """No connection came about."""
        reason = str(error) or type(error).__name__
        if isinstance(error, WireError):
            self._tell(reason)
        if not self.up:
            self.reason = reason

    def _tell(self, reason: str) -> None:
        """Tried again for ever, so told once for each new reason."""
        if reason != self._told:
            log.error("link %s: %s", self.name, reason)
        self._told = reason

    async def _serve(self, sock: socket.socket, greet: Greeting) -> None:
        """From the first hello to the end of one connection."""
        with contextlib.closing(sock):
            try:
                async with asyncio.timeout(HELLO_TIMEOUT):  # wait_for may swallow the order to end
                    theirs = await greet(sock)
            except TimeoutError:
                self._failed(WireError(f"no answer within {HELLO_TIMEOUT:g} s"))
                return
            except (OSError, WireError) as error:
                self._failed(error)
                return
            await self._carry(sock, theirs)

    async def _carry(self, sock: socket.socket, theirs: Hello) -> None:
        """A connection whose hellos were exchanged, to its end."""
        self._socket, self.up, self.heard, self.reason, self._told = sock, True, time.monotonic(), "", ""
        writer = asyncio.create_task(self._write(sock))
        writer.add_done_callback(lambda task: self._writer_ended(sock, task))
        try:
            self._listener.joined(self, theirs)
            await self._read(sock)
        finally:
            self._end(sock)
            writer.cancel()
            await asyncio.wait([writer])  # its place in the event loop goes by the number of the socket

    async def _read(self, sock: socket.socket) -> None:
        """Hand on messages until the connection ends; nothing that was still to be read counts after `drop`."""
        while self._socket is sock:
            try:
                header, payload = await self._read_message(sock)
            except (OSError, WireError) as error:
                self._broken(sock, error)
                return
            if self._socket is not sock:
                return
            try:
                await self._listener.arrived(self, header, payload)
            except WireError as error:
                self._broken(sock, error)
                return
            if header.length >= JOIN_BELOW:
                await asyncio.sleep(0)  # nor does one that is full of data

    def _broken(self, sock: socket.socket, error: Exception) -> None:
        if isinstance(error, WireError):
            log.error("link %s: %s", self.name, error)
        if self._socket is sock:
            self.drop(str(error) or type(error).__name__, here=isinstance(error, WireError))

    def _writer_ended(self, sock: socket.socket, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None and self._socket is sock:
            self.drop(str(task.exception()))

    # --- hellos ---

    async def _call(self, sock: socket.socket) -> Hello:
        """Connect, say hello and hear the answer."""
        sock.bind((self.config.address, 0))
        await asyncio.get_running_loop().sock_connect(sock, (self.config.peer, self.config.port))
        await self._say_hello(sock)
        theirs = await self._hear_hello(sock)
        unfit = self._listener.judge(self, theirs)
        if theirs.refused or unfit:
            raise WireError(f"the peer refused: {theirs.refused}" if theirs.refused else unfit)
        return theirs

    async def _answer(self, sock: socket.socket) -> Hello:
        """Hear the caller's hello and answer it."""
        try:
            theirs = await self._hear_hello(sock)
        except VersionError as error:
            await self._say_hello(sock, str(error))  # at least our version can be read there
            raise
        refused = self._listener.judge(self, theirs)
        if not refused and self.up:
            self.drop("the peer connected anew", here=True)  # which may end the session
            refused = self._listener.judge(self, theirs)
        await self._say_hello(sock, refused)
        if refused:
            raise WireError(f"refused the peer: {refused}")
        return theirs

    async def _say_hello(self, sock: socket.socket, refused: str = "") -> None:
        hello = msgspec.structs.replace(self._listener.hello(self), refused=refused)
        message = Message(Type.HELLO, payload=(msgspec.json.encode(hello),))
        header = encode_header(message, 0, digest(message.payload))
        await asyncio.get_running_loop().sock_sendall(sock, b"".join((header, *message.payload)))

    async def _hear_hello(self, sock: socket.socket) -> Hello:
        header = decode_header(await self._read_exactly(sock, HEADER.size))
        if header.type is not Type.HELLO:
            raise WireError(f"{header.type.name} before the hello")
        if header.length > LIMIT:  # before it costs memory: nobody knows yet who that is
            raise WireError(f"a hello of {header.length} bytes; at most {LIMIT} are legal")
        payload = await self._read_exactly(sock, header.length)
        check_payload(header, payload)
        return understood(payload, Hello, "a hello")

    def drop(self, reason: str, *, here: bool = False) -> None:
        """End the connection now. A message that is being handled is handled to its end, no further one is.

        here: the peer is there; it is this host that will not go on with the connection.
        """
        if self._socket is not None:
            self.reason, self.ended_here = reason, here
            self._end(self._socket)

    def _end(self, sock: socket.socket) -> None:
        if self._socket is not sock:
            return
        self._socket, self.up = None, False
        self._forget_queue()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        self._listener.left(self, self.reason)
