# SPDX-License-Identifier: GPL-2.0-or-later
"""Speaks the wire format by hand over one link, as a peer that is wrong in some way would."""

from __future__ import annotations

import contextlib
import socket
import struct
from typing import Any

import msgspec
import xxhash

from tests.links.cables import PORT, Cables, address, other
from vmlink.wire import HEADER, MAGIC, VERSION, Header, Message, Type, decode_header, digest, encode_header

BEAT = struct.Struct("!QQQQQQ")


def frame(message: Message, seq: int = 0) -> bytes:
    return b"".join((encode_header(message, seq, digest(message.payload)), *message.payload))


def odd_frame(payload: bytes = b"", *, magic: bytes = MAGIC, version: int = VERSION, kind: int = Type.PAGES,
              seq: int = 0, length: int | None = None, reserved: int = 0) -> bytes:
    """A frame with a right digest however wrong its header is."""
    size = len(payload) if length is None else length
    body = struct.pack("!4sHHQQQQIIQ", magic, version, kind, 0, 0, 0, seq, size, reserved,
                       xxhash.xxh3_64_intdigest(payload))
    return body + xxhash.xxh3_64_digest(body) + payload


class Speaker:
    """One connection; made by `call`, or by `Exchange.answer`."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        sock.settimeout(15)

    @classmethod
    def call(cls, cables: Cables, link: str, *, place: str = "alpha", source: str = "") -> Speaker:
        """Connect from `place` to the service on the other host."""
        with cables.inside(place):
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(15)
        sock.bind((source or address(place, link), 0))
        sock.connect((address(other(place), link), PORT))
        return cls(sock)

    def raw(self, data: bytes) -> None:
        """Send; a connection that was closed meanwhile is no fault."""
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def say(self, message: Message, seq: int = 0) -> None:
        self.raw(frame(message, seq))

    def say_hello(self, session: int, *, fresh: bool = True, host: str = "alpha", **more: Any) -> None:
        hello = {"host": host, "session": session, "fresh": fresh, **more}
        self.say(Message(Type.HELLO, payload=(msgspec.json.encode(hello),)))

    def greet(self, session: int, **more: Any) -> dict[str, Any]:
        """Say hello and return the answer."""
        self.say_hello(session, **more)
        return self.hello()

    def hello(self) -> dict[str, Any]:
        header, payload = self.hear()
        assert header.type is Type.HELLO
        return msgspec.json.decode(payload)  # type: ignore[no-any-return]

    def hear(self) -> tuple[Header, bytes]:
        header = decode_header(self._exactly(HEADER.size))
        return header, self._exactly(header.length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            if not piece:
                raise ConnectionResetError("closed")
            data += piece
        return data

    def ended(self) -> bool:
        """Wait until the other side has closed the connection."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.socket.close()


class Exchange:
    """Listens in beta on both links, in place of a service."""

    def __init__(self, cables: Cables) -> None:
        self._servers: dict[str, socket.socket] = {}
        for link in ("link0", "link1"):
            with cables.inside("beta"):
                server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address("beta", link), PORT))
            server.listen(16)
            server.settimeout(15)
            self._servers[link] = server

    def answer(self, link: str) -> Speaker:
        return Speaker(self._servers[link].accept()[0])

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
