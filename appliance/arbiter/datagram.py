# SPDX-License-Identifier: GPL-2.0-or-later
"""What hosts and witness say to each other: one UDP datagram there, one back.

A datagram is MAGIC, the HMAC-SHA256 (RFC 2104) of what follows under the pair's key, and a JSON object. The key of the
HMAC has the direction appended, so that nothing that was asked passes for an answer. An answer repeats the nonce of
its question. A question that is sent again by whoever overheard it does no harm: reading is harmless, and what would
be replaced has another version by then. Nothing is secret here.
"""

from __future__ import annotations

import hmac
from typing import Annotated, TypeVar

import msgspec

from appliance.arbiter.grants import Record
from appliance.errors import BadData

MAGIC = b"HFW1"
PORT = 7790
LONGEST = 1024
"""Bytes of a datagram."""
_DIGEST = 32
_QUESTION, _ANSWER = b" question", b" answer"
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?$")]
Nonce = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}$")]
Version = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Replace the record of this version."""

    version: Version
    record: Record


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies there for this VM? `put`: replace it first."""

    nonce: Nonce
    pair: Name
    vm: Name
    put: Put | None = None


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies there now. `done`: what was to be put was put; `trouble`: why it could not be, for people."""

    nonce: Nonce
    version: Version
    record: Record
    done: bool = False
    trouble: Annotated[str, msgspec.Meta(max_length=300)] = ""


T = TypeVar("T", Question, Reply)


def _digest(key: bytes, kind: type[Question | Reply], body: bytes) -> bytes:
    return hmac.digest(key + (_QUESTION if kind is Question else _ANSWER), body, "sha256")


def seal(message: Question | Reply, key: bytes) -> bytes:
    """The datagram of `message`."""
    body = msgspec.json.encode(message)
    return MAGIC + _digest(key, type(message), body) + body


def peek(datagram: bytes) -> Question:
    """The question in a datagram that nobody has checked yet: only to find its key. Raises BadData."""
    return _decode(datagram, Question)


def unseal(datagram: bytes, kind: type[T], key: bytes) -> T:
    """The message in a datagram, if it was sealed with `key`. Raises BadData."""
    start = len(MAGIC) + _DIGEST
    if not hmac.compare_digest(datagram[len(MAGIC):start], _digest(key, kind, datagram[start:])):
        raise BadData("a datagram sealed with another key", "both sides need the same key file")
    return _decode(datagram, kind)


def _decode(datagram: bytes, kind: type[T]) -> T:
    if len(datagram) > LONGEST or not datagram.startswith(MAGIC):
        raise BadData("not a datagram of ours")
    try:
        return msgspec.json.decode(datagram[len(MAGIC) + _DIGEST:], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadData(f"a datagram that cannot be read: {error}") from None


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, or HOST alone; an IPv6 address stands in brackets before a port. Raises BadData."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = text, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise BadData(f"{text!r} is not HOST:PORT", f"such as 192.0.2.5:{PORT}")
    return host, int(port)
