# SPDX-License-Identifier: GPL-2.0-or-later
"""A tiny redis, HTTP and echo server on loopback that can be told to break its promises."""

from __future__ import annotations

import hashlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

BLOB = bytes(range(256)) * 1024
SHA256 = hashlib.sha256(BLOB).hexdigest()


class Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here."""


class Server:
    """Correct by default; each attribute below breaks one promise."""

    lose_counter_at: int = 0  # when the counter reaches this, it falls back by one, once
    lose_key_after: int = 0  # this many SETs are kept, the next one is acknowledged and forgotten
    wrong_value = False  # the second key reads back as something else
    reset_echo_at: int = 0  # the echo connection is reset (RST) at this message, once
    end_redis_at: int = 0  # the counter connection is closed (EOF) when this many INCRs came, once
    carry_out_lost = True  # ... after carrying out the INCR whose answer is never sent
    twice_at: int = 0  # when the counter reaches this, the INCR is carried out twice, once
    corrupt_download = False
    truncate_download = False
    change_echo_at: int = 0
    stall_echo: tuple[int, float] = (0, 0.0)  # at message i, wait so many seconds

    def __init__(self) -> None:
        self.data: dict[str, str] = {}
        self.sets = 0
        self.incrs = 0
        self.echoes = 0
        self.downloads = 0
        self._lock = threading.Lock()
        self._servers = [self._serve(handler) for handler in (self._redis, self._http, self._echo)]
        self.redis_port, self.http_port, self.echo_port = (s.server_address[1] for s in self._servers)

    def options(self) -> list[str]:
        return [
            *("--host", "127.0.0.1", "--redis-port", str(self.redis_port), "--http-port", str(self.http_port)),
            *("--echo-port", str(self.echo_port), "--sha256", SHA256, "--download-every", "0.05"),
        ]

    def _serve(self, handle: Callable[[socket.socket], None]) -> Listener:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                handle(self.request)

        server = Listener(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _redis(self, sock: socket.socket) -> None:
        with sock.makefile("rb") as lines:
            while line := lines.readline():
                words = []
                for _ in range(int(line[1:])):
                    length = int(lines.readline()[1:])
                    words.append(lines.read(length + 2)[:-2].decode())
                with self._lock:
                    reply = self._command(*words)
                if reply is None:
                    return
                sock.sendall(reply.encode())

    def _command(self, verb: str, *words: str) -> str | None:
        if verb == "INCR":
            return self._incr(words[0])
        if verb == "SET":
            self.sets += 1
            if self.sets - 1 != self.lose_key_after or not self.lose_key_after:
                self.data[words[0]] = words[1]
            return "+OK\r\n"
        lie = self.wrong_value and verb == "MGET"
        values = ["something else" if lie and word.endswith(":1") else self.data.get(word) for word in words]
        bulks = "".join("$-1\r\n" if v is None else f"${len(v)}\r\n{v}\r\n" for v in values)
        return bulks if verb == "GET" else f"*{len(values)}\r\n{bulks}"

    def _incr(self, key: str) -> str | None:
        self.incrs += 1
        value = int(self.data.get(key, "0")) + 1
        end = self.incrs == self.end_redis_at
        if self.lose_counter_at and value == self.lose_counter_at:
            self.lose_counter_at = 0
            value -= 1
        if self.twice_at and value == self.twice_at:
            self.twice_at = 0
            value += 1
        if not end or self.carry_out_lost:
            self.data[key] = str(value)
        return None if end else f":{value}\r\n"

    def _http(self, sock: socket.socket) -> None:
        sock.recv(4096)
        self.downloads += 1
        body = BLOB[:-1] + b"!" if self.corrupt_download else BLOB
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        sock.sendall(head + (body[:1000] if self.truncate_download else body))

    def _echo(self, sock: socket.socket) -> None:
        while data := sock.recv(4096):
            self.echoes += 1
            if self.echoes == self.stall_echo[0]:
                time.sleep(self.stall_echo[1])
            if self.echoes == self.reset_echo_at:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.close()
                return
            if self.echoes == self.change_echo_at:
                data = data[:-1] + b"?"
            sock.sendall(data)
