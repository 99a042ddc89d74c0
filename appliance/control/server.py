# SPDX-License-Identifier: GPL-2.0-or-later
"""The answering end of the control socket.

Whoever is at the other end is not trusted: lines, answers, clients and waiting are all bounded; a client that breaks a
bound loses its connection, no more.
"""

import asyncio
import contextlib
import grp
import logging
import os
import socket
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from appliance.control.protocol import MAX_ANSWER_BYTES, MAX_REQUEST_BYTES, PROTOCOL
from appliance.errors import BadData, HoldfastError, NoPermission, Unavailable
from appliance.registry import Access
from appliance.watched import watched

MAX_CLIENTS = 32
MAX_STREAMS = 16
BACKLOG = 128  # connections that wait to be taken
VERB_SECONDS = 30.0  # the longest that a verb may take
WRITE_SECONDS = 5.0  # the longest that a client may leave an answer unread
PUSHED_BYTES = 4 << 20  # of a stream that may wait in the kernel for its client
IDLE_SECONDS = 300.0  # the longest between two requests
EACH_SECONDS = 0.005  # of all clients together, one request in this time: the event loop is there for the VMs first
ACCEPT_SECONDS = 0.001  # between two connections, for the same reason

Verb = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
Stream = Callable[[dict[str, Any]], AsyncGenerator[dict[str, Any], None]]
Push = Callable[[dict[str, Any]], bool]
"""Says an item at once, before it returns; False when the client has not read what was said before: it is not said."""
PushStream = Callable[[dict[str, Any], Push], AsyncGenerator[dict[str, Any], None]]
"""A stream that, besides, says things as they happen: what was said is the client's even if this process dies now."""
_SO_SNDBUFFORCE = 32
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of socket(7)
log = logging.getLogger("holdfast.control")


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    verb: str
    id: int = 0
    args: dict[str, Any] = {}


_read_request = msgspec.json.Decoder(_Request).decode


def _line(message: object) -> bytes:
    return msgspec.json.encode(message) + b"\n"


class ControlServer:
    """Serves `verbs`, `streams` and `pushed` streams on the UNIX socket `path` until `close`.

    Root may use all of them. `group` may open the socket too, where there is such a group, and use those verbs
    for which `access` says Access.GROUP. `ordered` hears of each other verb: its arguments, and the user
    id of who asked.
    """

    def __init__(self, path: Path, verbs: dict[str, Verb], streams: Mapping[str, Stream] | None = None,
                 access: Callable[[str], Access] = lambda verb: Access.ROOT, group: str = "",
                 ordered: Callable[[str, dict[str, Any], int], None] = lambda verb, args, uid: None,
                 pushed: Mapping[str, PushStream] | None = None) -> None:
        self.path = path
        self._verbs, self._streams, self._pushed = verbs, streams or {}, pushed or {}
        self._access, self._group, self._ordered = access, group, ordered
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[None], float] = {}  # when each last did something, monotonic seconds
        self._streaming: set[asyncio.Task[None]] = set()
        self._turn, self._next_turn = asyncio.Lock(), 0.0

    async def start(self) -> None:
        """Listen. Raises Unavailable (another service answers there, path unusable) or NoPermission."""
        self._listener = _listen(self.path, self._group)
        self._accepting = watched(self._accept(self._listener), "control socket")

    async def close(self) -> None:
        """Stop listening, cut every client, remove the socket."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        clients = list(self._clients)
        for client in clients:
            client.cancel()
        await asyncio.gather(self._accepting, *clients, return_exceptions=True)
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await _readable(listener)
            try:
                connection, _ = listener.accept()  # not the loop's: one must not be lost when this is cancelled
            except BlockingIOError:
                continue
            except OSError as error:  # no descriptors are left: those that come may wait
                log.warning("a control client cannot be taken: %s", error)
                await asyncio.sleep(1.0)
                continue
            if len(self._clients) >= MAX_CLIENTS:
                # The one silent longest makes room: idle connections must not lock the operator out.
                idle = min(self._clients.keys() - self._streaming, key=lambda client: self._clients[client])
                del self._clients[idle]
                idle.cancel()
            task = loop.create_task(self._serve(connection))
            self._clients[task] = time.monotonic()
            task.add_done_callback(lambda ended: self._clients.pop(ended, None))
            await asyncio.sleep(ACCEPT_SECONDS)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_REQUEST_BYTES)
        except BaseException:
            connection.close()
            raise
        task = asyncio.current_task()
        assert task is not None
        try:
            writer.transport.set_write_buffer_limits(high=0)  # `drain` waits until the client has it all
            await self._converse(task, reader, writer)
        except (TimeoutError, OSError, asyncio.CancelledError):
            pass  # too slow, gone, or cut
        except Exception:
            log.exception("a control client ended in an error of ours")
        finally:
            writer.transport.abort()

    async def _converse(self, task: asyncio.Task[None], reader: asyncio.StreamReader,
                        writer: asyncio.StreamWriter) -> None:
        user = _user(writer)
        root = user in (0, os.geteuid())
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
            await self._wait_for_a_turn()
            try:
                request = _read_request(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
                await _send(writer, _failure(0, BadData(f"not a request: {exc}", "send a JSON object")))
                continue
            if not root and self._access(request.verb) is not Access.GROUP:
                refused = NoPermission(f"{request.verb[:40]} is for root alone", "run this as root")
                await _send(writer, _failure(request.id, refused))
            elif request.verb not in self._streams and request.verb not in self._pushed:
                if self._access(request.verb) is not Access.GROUP:
                    self._ordered(request.verb, request.args, user)
                await _send(writer, await self._answer(request))
            elif not await self._stream(task, request, reader, writer):
                return

    async def _wait_for_a_turn(self) -> None:
        async with self._turn:  # which is given in the order of asking
            await asyncio.sleep(max(0.0, self._next_turn - time.monotonic()))
            self._next_turn = time.monotonic() + EACH_SECONDS

    async def _answer(self, request: _Request) -> bytes:
        number = request.id
        try:
            verb = self._verbs.get(request.verb)
            if verb is None:
                hint = f"known are {', '.join(sorted({*self._verbs, *self._streams, *self._pushed}))}"
                raise BadData(f"unknown verb {request.verb[:40]!r}", hint)
            async with asyncio.timeout(VERB_SECONDS):
                answer = _line({"id": number, "ok": await verb(request.args)})
            if len(answer) > MAX_ANSWER_BYTES:
                raise BadData("the answer is too long to send", "ask for less")
            return answer
        except TimeoutError:
            cause = f"the verb took longer than {VERB_SECONDS:g} s"
            return _failure(number, Unavailable(cause, "see the service's log"))
        except HoldfastError as exc:
            return _failure(number, exc)
        except Exception:
            log.exception("a control verb failed")
            return _failure(number, HoldfastError("the service failed to answer", "see the service's log"))

    async def _stream(self, task: asyncio.Task[None], request: _Request, reader: asyncio.StreamReader,
                      writer: asyncio.StreamWriter) -> bool:
        """Send items until there are no more; False when the client ended it, by whatever it did."""
        number = request.id
        if len(self._streaming) >= MAX_STREAMS:
            await _send(writer, _failure(number, Unavailable(f"{MAX_STREAMS} streams are open already", "end some")))
            return True
        self._streaming.add(task)
        items = self._items(request, writer)
        client, coming = asyncio.ensure_future(reader.read(1)), asyncio.ensure_future(anext(items))
        try:
            while True:
                await asyncio.wait((coming, client), return_when=asyncio.FIRST_COMPLETED)
                if client.done():
                    return False
                await _send(writer, _line({"id": number, "item": coming.result()}))
                self._clients[task] = time.monotonic()
                coming = asyncio.ensure_future(anext(items))
        except StopAsyncIteration:
            await _send(writer, _line({"id": number, "ok": {}}))
        except HoldfastError as exc:
            await _send(writer, _failure(number, exc))
        finally:
            self._streaming.discard(task)
            for ours in (client, coming):
                ours.cancel()
            await asyncio.gather(client, coming, return_exceptions=True)
            await items.aclose()
        return True

    def _items(self, request: _Request, writer: asyncio.StreamWriter) -> AsyncGenerator[dict[str, Any], None]:
        if request.verb in self._streams:
            return self._streams[request.verb](request.args)
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, PUSHED_BYTES)

        def push(item: dict[str, Any]) -> bool:
            if writer.transport.is_closing() or writer.transport.get_write_buffer_size():
                return False
            writer.write(_line({"id": request.id, "item": item}))
            return True

        return self._pushed[request.verb](request.args, push)


async def _readable(listener: socket.socket) -> None:
    """Somebody wants to be taken."""
    loop, there = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(listener, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(listener)


def _user(writer: asyncio.StreamWriter) -> int:
    """The client's user id, as the kernel says."""
    connection = writer.get_extra_info("socket")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    writer.write(line)
    async with asyncio.timeout(WRITE_SECONDS):
        await writer.drain()


def _failure(number: int, exc: HoldfastError) -> bytes:
    return _line({"id": number, "error": {"code": exc.code, "message": exc.message, "hint": exc.hint}})


def _listen(path: Path, group: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            _remove_stale(path)
        listener.bind(str(path))
        os.chmod(path, 0o660)  # before `listen`, so that nobody gets in while the mode is still wider
        with contextlib.suppress(KeyError):  # no such group: root alone
            os.chown(path, -1, grp.getgrnam(group).gr_gid)
        listener.listen(BACKLOG)
        listener.setblocking(False)
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
