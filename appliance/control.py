# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: how commands ask the running service.

JSON lines on a UNIX socket. The server greets with `{"protocol": "holdfast.control/1"}`; a request is
`{"id": 1, "verb": "status", "args": {}}`; the answer repeats the id and carries either `ok` or
`error: {"code", "message", "hint"}`. Whoever is at the other end of the socket is not trusted: lines,
answers, clients and waiting are all bounded; a client that breaks a bound loses its connection, no more.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from appliance.errors import BadData, HoldfastError, NoPermission, Unavailable, Unreachable, from_code

PROTOCOL = "holdfast.control/1"
MAX_REQUEST_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 4 << 20
MAX_CLIENTS = 32
VERB_SECONDS = 30.0  # the longest that a verb may take
WRITE_SECONDS = 5.0  # the longest that a client may leave an answer unread
IDLE_SECONDS = 300.0  # the longest between two requests

Verb = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
log = logging.getLogger(__name__)


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    verb: str
    id: int = 0
    args: dict[str, Any] = {}


class _Reply(msgspec.Struct):
    id: int = 0
    ok: dict[str, Any] | None = None
    error: dict[str, str] | None = None


class _Greeting(msgspec.Struct):
    protocol: str


_read_request = msgspec.json.Decoder(_Request).decode
_read_reply = msgspec.json.Decoder(_Reply).decode
_read_greeting = msgspec.json.Decoder(_Greeting).decode


def _line(message: object) -> bytes:
    return msgspec.json.encode(message) + b"\n"


class ControlServer:
    """Serves `verbs` on the UNIX socket `path` (0660) until `close`."""

    def __init__(self, path: Path, verbs: dict[str, Verb]) -> None:
        self.path = path
        self._verbs = verbs
        self._server: asyncio.Server | None = None
        self._clients: dict[asyncio.Task[None], float] = {}  # when each last did something, monotonic seconds

    async def start(self) -> None:
        """Listen. Raises Unavailable (another service answers there, path unusable) or NoPermission."""
        listener = _listen(self.path)
        self._server = await asyncio.start_unix_server(self._accept, sock=listener, limit=MAX_REQUEST_BYTES)

    async def close(self) -> None:
        """Stop listening, cut every client, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with contextlib.suppress(OSError):
            self.path.unlink()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._clients) >= MAX_CLIENTS:
            # The one silent longest makes room: idle connections must not lock the operator out.
            idle = min(self._clients, key=lambda client: self._clients[client])
            del self._clients[idle]
            idle.cancel()
        self._clients[task] = time.monotonic()
        try:
            writer.transport.set_write_buffer_limits(high=0)  # `drain` waits until the client has it all
            await self._converse(task, reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            pass  # too slow, gone, or cut
        except Exception:
            log.exception("a control client ended in an error of ours")
        finally:
            self._clients.pop(task, None)
            writer.transport.abort()

    async def _converse(
        self, task: asyncio.Task[None], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await _send(writer, _line({"protocol": PROTOCOL}))
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readuntil(b"\n")
            except asyncio.IncompleteReadError:
                return
            except asyncio.LimitOverrunError:
                hint = "send one JSON object a line"
                too_long = BadData(f"a request is longer than {MAX_REQUEST_BYTES} bytes", hint)
                await _send(writer, _failure(0, too_long))
                return
            self._clients[task] = time.monotonic()
            await _send(writer, await self._answer(line))

    async def _answer(self, line: bytes) -> bytes:
        number = 0
        try:
            request = _read_request(line)
            number = request.id
            verb = self._verbs.get(request.verb)
            if verb is None:
                hint = f"known are {', '.join(sorted(self._verbs))}"
                raise BadData(f"unknown verb {request.verb[:40]!r}", hint)
            async with asyncio.timeout(VERB_SECONDS):
                answer = _line({"id": number, "ok": await verb(request.args)})
            if len(answer) > MAX_ANSWER_BYTES:
                raise BadData("the answer is too long to send", "ask for less")
            return answer
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            return _failure(number, BadData(f"not a request: {exc}", "send a JSON object"))
        except TimeoutError:
            cause = f"the verb took longer than {VERB_SECONDS:g} s"
            return _failure(number, Unavailable(cause, "see the service's log"))
        except HoldfastError as exc:
            return _failure(number, exc)
        except Exception:
            log.exception("a control verb failed")
            return _failure(number, HoldfastError("the service failed to answer", "see the service's log"))


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    async with asyncio.timeout(WRITE_SECONDS):
        await writer.drain()


def _failure(number: int, exc: HoldfastError) -> bytes:
    return _line({"id": number, "error": {"code": exc.code, "message": exc.message, "hint": exc.hint}})


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            _remove_stale(path)
        listener.bind(str(path))
        os.chmod(path, 0o660)  # before `listen`, so that nobody gets in while the mode is still wider
        listener.listen(MAX_CLIENTS)
    except HoldfastError:
        listener.close()
        raise
    except PermissionError as exc:
        listener.close()
        raise NoPermission(f"control socket {path}: {exc.strerror}", "run the service as root") from None
    except OSError as exc:  # also: path longer than the 107 bytes that a UNIX socket can have
        listener.close()
        cause = f"control socket {path}: {exc.strerror or exc}"
        raise Unavailable(cause, "choose another host.run_dir") from None
    return listener


def _remove_stale(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()  # its owner is dead
            return
        except (TimeoutError, BlockingIOError):
            pass  # alive, though it does not accept
    raise Unavailable(f"another service answers at {path}", "stop it, or give this one another host.run_dir")


def call(path: Path | str, verb: str, *, timeout: float = 5.0, **args: Any) -> dict[str, Any]:
    """Ask the service at `path`; `timeout` in seconds bounds the whole exchange.

    Raises Unreachable (nobody there, or no answer in time), NoPermission, BadData (not our protocol) or the
    error that the service answered with.
    """
    deadline = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        try:
            connection.settimeout(timeout)
            connection.connect(str(path))
            reader = _LineReader(connection, deadline)
            _check_greeting(reader.line())
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            connection.sendall(_line({"id": 1, "verb": verb, "args": args}))
            reply = _read_reply(reader.line())
        except (TimeoutError, BlockingIOError):
            hint = "it may be paused or overloaded; see its log"
            raise Unreachable(f"the service at {path} does not answer within {timeout:g} s", hint) from None
        except PermissionError:
            raise NoPermission(f"no access to {path}", "run this as root") from None
        except OSError as exc:
            hint = "start it, or name its control socket with --control or HOLDFAST_CONTROL"
            raise Unreachable(f"no service answers at {path}: {exc.strerror or exc}", hint) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise BadData(f"{path} does not speak {PROTOCOL}: {exc}", "is it our service's socket?") from None
    if reply.error is not None:
        error = reply.error
        raise from_code(error.get("code", ""), error.get("message", "no reason given"), error.get("hint", ""))
    if reply.ok is None or reply.id != 1:
        raise BadData(f"{path} gave no answer to the question", "restart the service")
    return reply.ok


def _check_greeting(line: bytes) -> None:
    protocol = _read_greeting(line).protocol
    if protocol != PROTOCOL:
        hint = "use the command of the same version"
        raise BadData(f"the service speaks {protocol[:40]!r}, this command {PROTOCOL}", hint)


class _LineReader:
    """Lines from a socket, each of at most MAX_ANSWER_BYTES, before a deadline in monotonic seconds."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._data = bytearray()

    def line(self) -> bytes:
        while (end := self._data.find(b"\n")) < 0:
            remaining = self._deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError
            if len(self._data) > MAX_ANSWER_BYTES:
                raise BadData("the service's answer has no end", "is it our service's socket?")
            self._connection.settimeout(remaining)
            received = self._connection.recv(65536)
            if not received:
                raise ConnectionResetError("it closed the connection")
            self._data += received
        line = bytes(self._data[:end])
        del self._data[: end + 1]
        return line
