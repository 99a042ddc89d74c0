# SPDX-License-Identifier: GPL-2.0-or-later
"""The TCP streams of the client workload: INCR, SET, download, echo.

Each runs in its own thread on its own blocking socket, one operation at a time, and notes when each operation
was started and how long the answer took. A connection that ends without our doing is noted as broken and
opened anew; waiting longer than TIMEOUT_S for an answer counts as broken too, anything shorter is only slow.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import struct
import threading
import time
from abc import ABC, abstractmethod
from typing import BinaryIO

from appliance.lab.judge import CounterJudge, WriteJudge
from appliance.lab.recording import Broken, StreamRecord

TIMEOUT_S = 15.0
RETRY_S = 0.05
FAULTS_KEPT = 20


class WrongAnswer(Exception):
    """The server answered, but not what a working server answers."""


class Ended(ConnectionError):
    """The server closed the connection although nobody asked it to."""

    def __init__(self) -> None:
        super().__init__("closed by the server (EOF)")


class Stream(ABC):
    """One stream. Subclasses say how to connect and what one operation is."""

    name: str
    pace_s = 0.0  # operations start at least this far apart

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.record = StreamRecord(self.name)
        self.stop = threading.Event()
        self.answered = threading.Event()  # set with the first answer
        self.requests = 0
        self.wrong_answers = 0
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    @abstractmethod
    def connect(self) -> None:
        """Open the connection (closing an old one). Raises OSError, or WrongAnswer when the server is not ready."""

    @abstractmethod
    def operate(self) -> None:
        """One operation, from request to answer. Raises OSError or WrongAnswer."""

    @abstractmethod
    def close(self) -> None: ...

    def unanswered(self) -> None:  # noqa: B027 (most streams have nothing to do here)
        """The operation just begun got no answer."""

    def fault(self, text: str) -> None:
        if len(self.record.faults) < FAULTS_KEPT:
            self.record.faults.append(text)

    def _run(self) -> None:
        connected = False
        while not self.stop.is_set():
            if not connected:
                connected = self._reconnect()
                continue
            begun = time.monotonic_ns()
            self.requests += 1
            try:
                self.operate()
            except WrongAnswer as error:
                self.wrong_answers += 1
                self.fault(str(error))
                self.stop.wait(RETRY_S)
            except OSError as error:
                self._broken(error)
                self.unanswered()
                connected = False
            else:
                self.record.start_ns.append(begun)
                self.record.latency_ns.append(time.monotonic_ns() - begun)
                self.answered.set()
            self._wait_until(begun + round(self.pace_s * 1e9))
        self.close()

    def _reconnect(self) -> bool:
        try:
            self.connect()
            return True
        except (OSError, WrongAnswer) as error:
            self.fault(f"connecting to {self.address[0]} port {self.address[1]}: {error}")
            # Before the first answer the server may still be starting, and so does one that says so.
            if self.answered.is_set() and isinstance(error, OSError):
                self._broken(error)
            self.stop.wait(RETRY_S)
            return False

    def _broken(self, error: OSError) -> None:
        kind = "timeout" if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT else "reset"
        self.record.broken.append(Broken(time.monotonic_ns(), kind, str(error)))

    def _wait_until(self, due_ns: int) -> None:
        left = (due_ns - time.monotonic_ns()) / 1e9
        if left > 0:
            self.stop.wait(left)


def open_tcp(address: tuple[str, int], timeout: float = TIMEOUT_S) -> socket.socket:
    """A connected socket that sends at once and waits `timeout` seconds at most. Raises OSError."""
    sock = socket.create_connection(address, timeout=timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class Redis:
    """One redis connection: commands out, replies in, nothing buffered between two commands."""

    MAX_BULK = 1 << 20

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = open_tcp(address)
        self._replies: BinaryIO = self._socket.makefile("rb")

    def command(self, *words: str) -> int | str | list[int | str | None] | None:
        """Send one command and return its reply. Raises OSError, WrongAnswer for an error reply."""
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        self._socket.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return self._reply()

    def _reply(self) -> int | str | list[int | str | None] | None:
        line = self._replies.readline(self.MAX_BULK)
        if not line.endswith(b"\r\n"):
            raise Ended
        kind, rest = line[:1], line[1:-2].decode("utf-8", "replace")
        if kind == b"-":
            raise WrongAnswer(f"redis answered an error: {rest}")
        if kind == b"+":
            return rest
        try:
            number = int(rest)
        except ValueError:
            raise WrongAnswer(f"redis answered {line[:60]!r}") from None
        if kind == b":":
            return number
        if kind not in b"$*" or not -1 <= number <= self.MAX_BULK:
            raise WrongAnswer(f"redis answered {line[:60]!r}")
        if number < 0:
            return None
        if kind == b"$":
            data = self._replies.read(number + 2)
            if len(data) != number + 2:
                raise Ended
            return data[:-2].decode("utf-8", "replace")
        items = [self._reply() for _ in range(number)]
        return [None if isinstance(item, list) else item for item in items]

    def close(self) -> None:
        self._replies.close()
        self._socket.close()


class RedisStream(Stream):
    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        self.redis: Redis | None = None

    def connect(self) -> None:
        self.close()
        self.redis = Redis(self.address)

    def command(self, *words: str) -> int | str | list[int | str | None] | None:
        if self.redis is None:
            raise ConnectionError("not connected")
        return self.redis.command(*words)

    def close(self) -> None:
        if self.redis is not None:
            self.redis.close()
            self.redis = None


class Incr(RedisStream):
    """INCR on one counter over one connection kept open, each reply judged."""

    name = "incr"

    def __init__(self, address: tuple[str, int], run: str) -> None:
        super().__init__(address)
        self.key = f"{run}:counter"
        self.judge = CounterJudge()

    def operate(self) -> None:
        value = self.command("INCR", self.key)
        if not isinstance(value, int):
            self.unanswered()  # it may have been carried out all the same
            raise WrongAnswer(f"INCR answered {value!r}")
        self.judge.reply(value)

    def unanswered(self) -> None:
        self.judge.no_reply()


class Set(RedisStream):
    """SET of key after key, each acknowledged one noted."""

    name = "set"

    def __init__(self, address: tuple[str, int], run: str) -> None:
        super().__init__(address)
        self.judge = WriteJudge(run)
        self.next = 0

    def operate(self) -> None:
        index, self.next = self.next, self.next + 1
        self.judge.unanswered.add(index)
        answer = self.command("SET", self.judge.key(index), self.judge.value(index))
        if answer != "OK":
            raise WrongAnswer(f"SET answered {answer!r}")
        self.judge.unanswered.discard(index)
        self.judge.acknowledged.append(index)


class Download(Stream):
    """GET of one file again and again, a connection each; its SHA-256 is checked."""

    name = "download"
    pace_s = 0.25
    MAX_HEADER = 16384

    def __init__(self, address: tuple[str, int], path: str, sha256: str) -> None:
        super().__init__(address)
        self.path = path
        self.sha256 = sha256
        self.corrupt = 0
        self.bytes = 0
        self._buffer = bytearray(1 << 18)

    def connect(self) -> None:
        """Nothing: each download opens its own connection."""

    def close(self) -> None:
        """Nothing stays open between two downloads."""

    def operate(self) -> None:
        with open_tcp(self.address) as sock:
            sock.sendall(f"GET {self.path} HTTP/1.0\r\nHost: {self.address[0]}\r\n\r\n".encode())
            length, body = self._header(sock)
            digest, got = hashlib.sha256(body), len(body)
            while got < length:
                count = sock.recv_into(self._buffer)
                if count == 0:
                    raise Ended
                digest.update(memoryview(self._buffer)[:count])
                got += count
        self.bytes += got
        if digest.hexdigest() != self.sha256:
            self.corrupt += 1
            found = digest.hexdigest()
            raise WrongAnswer(f"{self.path}: {got} bytes with SHA-256 {found}, not {self.sha256}")

    def _header(self, sock: socket.socket) -> tuple[int, bytes]:
        """The length announced by the server, and what it sent of the body with the header."""
        data = b""
        while b"\r\n\r\n" not in data:
            if len(data) > self.MAX_HEADER:
                raise WrongAnswer("HTTP header without end")
            more = sock.recv(4096)
            if not more:
                raise Ended
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(":", 1) for line in lines if ":" in line)
        length = fields.get("content-length", "").strip()
        if status.split(" ")[1:2] != ["200"] or not length.isdigit():
            raise WrongAnswer(f"GET {self.path} answered {status!r} with length {length!r}")
        return int(length), body


class Echo(Stream):
    """One TCP connection held open throughout: a small message out, the same one back."""

    name = "echo"
    pace_s = 0.002
    SIZE = 32

    def __init__(self, address: tuple[str, int]) -> None:
        super().__init__(address)
        self._socket: socket.socket | None = None

    def connect(self) -> None:
        self.close()
        self._socket = open_tcp(self.address)

    def operate(self) -> None:
        if self._socket is None:
            raise ConnectionError("not connected")
        message = struct.pack("<QQ16x", self.requests, time.monotonic_ns())
        self._socket.sendall(message)
        answer = b""
        while len(answer) < self.SIZE:
            more = self._socket.recv(self.SIZE - len(answer))
            if not more:
                raise Ended
            answer += more
        if answer != message:
            raise WrongAnswer(f"echo {self.requests} came back changed")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
