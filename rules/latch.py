# SPDX-License-Identifier: GPL-2.0-or-later
"""The latch: puts a front's out tap into the set `open` of the rules, and takes it out, in one small transaction.

A takeover waits for this, so it does not go through the text of a ruleset: the message is packed beforehand and
sent over a socket of our own. A transaction that fails costs the kernel milliseconds (it waits for all its readers
before it forgets it), so we ask first whether there is anything to do.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from rules.errors import RulesError
from rules.libnftables import netlink
from rules.render import TABLE

_BRIDGE = 7  # NFPROTO_BRIDGE
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 16, 17  # NFNL_MSG_BATCH_*
_GET_SET, _NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT = 10, 12, 13, 14  # NFT_MSG_*SET, NFT_MSG_*SETELEM
_REQUEST, _ACK, _CREATE = 0x1, 0x4, 0x400
_NESTED = 0x8000
_ERROR = 2  # NLMSG_ERROR
_HEADER = struct.Struct("=IHHII")
_ANSWER = struct.Struct("=IHHIIi")
_NUMBER = 1
_NAME_BYTES = 16
_ANSWER_BYTES = 1 << 16
_TIMEOUT = struct.pack("@ll", 1, 0)


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _message(kind: int, flags: int, number: int, family: int, resource: int, payload: bytes = b"") -> bytes:
    body = struct.pack("!BBH", family, 0, resource) + payload
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, number, 0) + body


def _elements(device: str) -> bytes:
    key = _attribute(1 | _NESTED, _attribute(1, device.encode().ljust(_NAME_BYTES, b"\0")))
    return (_attribute(1, TABLE.encode() + b"\0") + _attribute(2, b"open\0")
            + _attribute(3 | _NESTED, _attribute(1 | _NESTED, key)))


def _order(verb: int, flags: int, payload: bytes) -> bytes:
    return _message(_SUBSYSTEM << 8 | verb, _REQUEST | _ACK | flags, _NUMBER, _BRIDGE, 0, payload)


def _batch(order: bytes) -> bytes:
    begin, end = (_message(kind, _REQUEST, 0, 0, _SUBSYSTEM) for kind in (_BEGIN, _END))
    return begin + order + end


class Latch:
    """The latch of one device, in the network namespace of the thread that makes it. Starts as it is: use `set`."""

    def __init__(self, device: str) -> None:
        """Raises RulesError when the kernel has no packet filter."""
        self.device = device
        elements = _elements(device)
        table = _attribute(1, TABLE.encode() + b"\0")
        self._is_loaded = _order(_GET_SET, 0, table + _attribute(2, b"open\0"))
        self._is_open = _order(_GET_ELEMENT, 0, elements)
        self._open = _batch(_order(_NEW_ELEMENT, _CREATE, elements))
        self._shut = _batch(_order(_DELETE_ELEMENT, 0, elements))
        self._socket = netlink()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEOUT)
        self._unread = False

    def set(self, opened: bool) -> None:
        """In force when this returns, some 10 us later. Where no rules are loaded there is nothing to move.

        Raises RulesError when the kernel refuses.
        """
        try:
            code = self._ask(self._is_loaded if opened else self._is_open)
            if not code:
                code = self._ask(self._open if opened else self._shut)
        except OSError as error:
            self._unread = True
            code = error.errno or errno.EIO
        if code not in (0, errno.ENOENT):
            verb = "opened" if opened else "shut"
            raise RulesError(f"the rules for {self.device} cannot be {verb}: {os.strerror(code)}",
                             "the next look at the rules tries again")

    def _ask(self, message: bytes) -> int:
        """The kernel's verdict, 0 or an errno. A batch may be refused as a whole, or in its one order."""
        while self._unread:  # what a call that failed did not wait for
            try:
                self._socket.recv(_ANSWER_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._unread = False
        self._socket.send(message)
        while True:
            answer = self._socket.recv(_ANSWER_BYTES)
            while len(answer) >= _ANSWER.size:
                length, kind, _, number, _, code = _ANSWER.unpack_from(answer)
                if kind == _ERROR and (number == _NUMBER or code):
                    self._unread = code != 0  # there may be a second word on it
                    return -int(code)
                answer = answer[(length + 3) & ~3:] if length >= _HEADER.size else b""

    def close(self) -> None:
        self._socket.close()
