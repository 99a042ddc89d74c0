# SPDX-License-Identifier: GPL-2.0-or-later
"""A fuzzer for the control socket: whatever clients do, who asks properly is answered, and the loop is not theirs."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.control import call
from appliance.control import server as serving
from tests.control.conftest import Running

VERBS = ("echo", "refuse", "break", "big", "stall", "count", "wait", "flood", "break-off", "nothing", "")
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=40)
documents = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
    st.text(max_size=8), inner, max_size=4), max_leaves=12)
requests = st.fixed_dictionaries(
    {"verb": st.sampled_from(VERBS) | documents},
    optional={"id": st.integers() | documents, "args": st.fixed_dictionaries(
        {}, optional={"to": documents, "bytes": documents, "first": documents}) | documents, "more": documents})
lines = requests.map(lambda request: json.dumps(request).encode() + b"\n")


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A request with some bytes changed, cut or doubled."""
    line = bytearray(draw(lines))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(line) - 1)))
        line[at: at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(line)


words = lines | mangled() | st.binary(max_size=200) | st.binary(min_size=1, max_size=3).map(lambda part: part * 30_000)
actions = st.tuples(st.just("send"), words) | st.tuples(st.sampled_from(["read", "half-close", "close", "wait"]),
                                                         st.just(b""))
conversations = st.lists(st.tuples(st.integers(0, 2), actions), min_size=1, max_size=12)


class Client:
    """One of a conversation's clients; connects when it first does something, and again once it was cut."""

    def __init__(self, server: Running) -> None:
        self._server = server
        self._socket: socket.socket | None = None

    def act(self, action: str, word: bytes) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(0.05)
            self._socket.connect(str(self._server.path))
        try:
            match action:
                case "send":
                    self._socket.sendall(word)
                case "read":
                    self._socket.recv(4096)
                case "half-close":
                    self._socket.shutdown(socket.SHUT_WR)
                case "close":
                    self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(conversation=conversations)
def test_whatever_clients_do_others_are_answered(
    server: Running, conversation: list[tuple[int, tuple[str, bytes]]]
) -> None:
    clients = [Client(server) for _ in range(3)]
    try:
        for number, (action, word) in conversation:
            clients[number].act(action, word)
        assert call(server.path, "echo", timeout=20, n=7) == {"n": 7}
    finally:
        for client in clients:
            client.close()
    assert len(server.server._clients) <= serving.MAX_CLIENTS


def test_a_flood_of_questions_gets_its_share_of_the_loop_and_no_more(server: Running) -> None:
    stop = threading.Event()

    def flood() -> None:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(0.5)
            client.connect(str(server.path))
            while not stop.is_set():
                client.sendall(b'{"verb": "echo"}\n' * 50)
                client.recv(1 << 16)

    began = time.monotonic()
    floods = [threading.Thread(target=flood) for _ in range(10)]
    for one in floods:
        one.start()
    for n in range(5):
        assert call(server.path, "echo", timeout=20, n=n) == {"n": n}
    answered, seconds = server.echoes, time.monotonic() - began
    stop.set()
    for one in floods:
        one.join(10)
    assert answered <= seconds / serving.EACH_SECONDS + 5


def test_a_flood_of_connections_keeps_nobody_out(server: Running) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.settimeout(0.2)
                client.connect(str(server.path))

    floods = [threading.Thread(target=flood) for _ in range(4)]
    for one in floods:
        one.start()
    try:
        for n in range(5):
            assert call(server.path, "echo", timeout=20, n=n) == {"n": n}
    finally:
        stop.set()
        for one in floods:
            one.join(10)
