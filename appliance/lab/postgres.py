# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of PostgreSQL: its protocol 3.0, simple queries, no password. One question at a time on a blocking socket.

https://www.postgresql.org/docs/15/protocol-flow.html
"""

from __future__ import annotations

import socket
import struct
from typing import BinaryIO

from appliance.lab.streams import TIMEOUT_S, Ended, WrongAnswer, open_tcp

PORT = 5432
USER = "postgres"
_VERSION = 3 << 16
_HEAD = struct.Struct(">cI")
_MAX_MESSAGE = 1 << 20  # bytes; no answer to what the lab asks is longer
_SHOWN = 200

Row = tuple[str | None, ...]


class Postgres:
    """An open session; what happens on it without BEGIN commits by itself."""

    def __init__(self, address: tuple[str, int], user: str = USER, database: str = "postgres",
                 patience: float = TIMEOUT_S) -> None:
        """patience: seconds, for an answer. Raises OSError, or WrongAnswer when the server does not let us in."""
        self._socket: socket.socket = open_tcp(address, patience)
        self._answers: BinaryIO = self._socket.makefile("rb")
        words = f"user\0{user}\0database\0{database}\0\0".encode()
        try:
            self._socket.sendall(struct.pack(">II", 8 + len(words), _VERSION) + words)
            self._rows()
        except BaseException:
            self.close()
            raise

    def query(self, sql: str) -> list[Row]:
        """The rows of all statements in `sql`, as text, None for NULL. Raises OSError, WrongAnswer for an error."""
        text = sql.encode() + b"\0"
        self._socket.sendall(_HEAD.pack(b"Q", 4 + len(text)) + text)
        return self._rows()

    def _rows(self) -> list[Row]:
        """All rows until the server is ready for the next query."""
        rows: list[Row] = []
        error: str | None = None
        while True:
            kind, body = self._message()
            if kind == b"D":
                rows.append(_row(body))
            elif kind == b"E":
                error = error or _reason(body)
            elif kind == b"R" and body[:4] != b"\0\0\0\0":
                raise WrongAnswer("PostgreSQL asks for a password")
            elif kind == b"Z":
                break
            # Parameters, notices, descriptions of rows and the ends of statements say nothing that is asked here.
            elif kind not in b"RSKNTCI":
                raise WrongAnswer(f"PostgreSQL said {kind + body[:40]!r}")
        if error is not None:
            raise WrongAnswer(f"PostgreSQL: {error}")
        return rows

    def _message(self) -> tuple[bytes, bytes]:
        kind, length = _HEAD.unpack(self._exactly(_HEAD.size))
        if not 4 <= length <= _MAX_MESSAGE:
            raise WrongAnswer(f"PostgreSQL announced a message of {length} bytes")
        body = self._exactly(length - 4)
        if kind == b"E" and _field(body, b"S") == "FATAL":
            raise WrongAnswer(f"PostgreSQL: {_reason(body)}")
        return kind, body

    def _exactly(self, count: int) -> bytes:
        data = self._answers.read(count)
        if len(data) != count:
            raise Ended
        return data

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


def _row(body: bytes) -> Row:
    (count,) = struct.unpack_from(">H", body)
    at = 2
    values: list[str | None] = []
    for _ in range(count):
        (length,) = struct.unpack_from(">i", body, at)
        at += 4
        if length < 0:
            values.append(None)
            continue
        values.append(body[at : at + length].decode("utf-8", "replace"))
        at += length
    return tuple(values)


def _field(body: bytes, kind: bytes) -> str:
    """One field of an error: each is its kind, its text and a zero byte."""
    return next((part[1:].decode("utf-8", "replace") for part in body.split(b"\0") if part[:1] == kind), "")


def _reason(body: bytes) -> str:
    return f"{_field(body, b'C')} {_field(body, b'M')}"[:_SHOWN]
