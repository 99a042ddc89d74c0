# SPDX-License-Identifier: GPL-2.0-or-later
"""The asking end of the control socket. Quick to import: every command begins with it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from appliance.control.protocol import MAX_ANSWER_BYTES, PROTOCOL
from appliance.errors import BadData, NoPermission, Unreachable, from_code


def call(path: Path | str, verb: str, *, timeout: float = 5.0, **args: Any) -> dict[str, Any]:
    """Ask the service at `path`; `timeout` in seconds bounds the whole exchange.

    Raises Unreachable (nobody there, or no answer in time), NoPermission, BadData (not our protocol) or the
    error that the service answered with.
    """
    with _connected(path, timeout) as lines:
        lines.ask(verb, args)
        reply = lines.reply()
        if not isinstance(answer := reply.get("ok"), dict):
            raise BadData(f"{path} gave no answer to the question", "restart the service")
        return answer


def stream(path: Path | str, verb: str, *, timeout: float = 5.0, until: float | None = None,
           **args: Any) -> Iterator[dict[str, Any]]:
    """The items of a streaming verb, as they come, until the service ends the stream.

    `timeout` in seconds bounds the time until the first item; `until` (monotonic seconds) the whole, after which
    TimeoutError is raised. Raises what `call` raises.
    """
    with _connected(path, timeout) as lines:
        lines.ask(verb, args)
        while True:
            reply = lines.reply()
            if "item" not in reply:
                return
            lines.deadline = until
            yield reply["item"]


@contextlib.contextmanager
def _connected(path: Path | str, timeout: float) -> Iterator[_Lines]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        lines = _Lines(connection, path, time.monotonic() + timeout)
        try:
            lines.connect()
            lines.greeted()
            yield lines
        except (TimeoutError, BlockingIOError):
            if lines.begun:
                raise TimeoutError from None
            hint = "it may be paused or overloaded; see its log"
            raise Unreachable(f"the service at {path} does not answer within {timeout:g} s", hint) from None
        except PermissionError:
            raise NoPermission(f"no access to {path}", "run this as root") from None
        except OSError as exc:
            hint = "start it, or name its control socket with --control or HOLDFAST_CONTROL"
            raise Unreachable(f"no service answers at {path}: {exc.strerror or exc}", hint) from None


class _Lines:
    """A conversation: lines of at most MAX_ANSWER_BYTES, before a deadline in monotonic seconds."""

    def __init__(self, connection: socket.socket, path: Path | str, deadline: float) -> None:
        self._connection, self._path = connection, path
        self.deadline: float | None = deadline
        self.begun = False
        """Has the service said something about the question?"""
        self._data = bytearray()

    def connect(self) -> None:
        """Connect; while more than the service takes at once want to, again and again."""
        while True:
            self._limit()
            try:
                self._connection.connect(str(self._path))
                return
            except BlockingIOError:
                time.sleep(0.01)

    def greeted(self) -> None:
        """Wait for the greeting. Raises BadData when it is not ours."""
        protocol = self._read().get("protocol")
        if not isinstance(protocol, str):
            raise BadData(f"{self._path} does not speak {PROTOCOL}", "is it our service's socket?")
        if protocol != PROTOCOL:
            raise BadData(f"the service speaks {protocol[:40]!r}, this command {PROTOCOL}",
                          "use the command of the same version")

    def ask(self, verb: str, args: dict[str, Any]) -> None:
        self._limit()
        self._connection.sendall(json.dumps({"id": 1, "verb": verb, "args": args}).encode() + b"\n")

    def reply(self) -> dict[str, Any]:
        """The next answer to our question. Raises BadData or the error that it carries."""
        reply = self._read()
        error = reply.get("error")
        if isinstance(error, dict):
            code, message, hint = (str(error.get(key, "")) for key in ("code", "message", "hint"))
            raise from_code(code, message or "no reason given", hint)
        if reply.get("id") != 1:
            raise BadData(f"{self._path} gave no answer to the question", "restart the service")
        self.begun = True
        return reply

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._line())
        except (ValueError, RecursionError) as exc:
            raise BadData(f"{self._path} does not speak {PROTOCOL}: {exc}", "is it our service's socket?") from None
        if not isinstance(found, dict):
            raise BadData(f"{self._path} does not speak {PROTOCOL}", "is it our service's socket?")
        return found

    def _limit(self) -> None:
        if self.deadline is None:
            self._connection.settimeout(None)
            return
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)

    def _line(self) -> bytes:
        while (end := self._data.find(b"\n")) < 0:
            if len(self._data) > MAX_ANSWER_BYTES:
                raise BadData("the service's answer has no end", "is it our service's socket?")
            self._limit()
            received = self._connection.recv(65536)
            if not received:
                raise ConnectionResetError("it closed the connection")
            self._data += received
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line
