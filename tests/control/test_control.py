# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket answers whoever asks properly, and survives whoever does not."""

import asyncio
import contextlib
import json
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance import control
from appliance.control import call, protocol
from appliance.control import server as serving
from appliance.control.server import ControlServer
from appliance.errors import BadData, HoldfastError, NoPermission, Unavailable, Unreachable, Unsafe
from tests.control.conftest import Running

Until = Callable[[Callable[[], object]], None]


def connect(server: Running) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(5)
    client.connect(str(server.path))
    return client


def lines(client: socket.socket) -> Iterator[dict[str, object]]:
    with client.makefile("rb") as stream:
        for line in stream:
            yield json.loads(line)


def still_answers(server: Running) -> bool:
    return call(server.path, "echo", n=7) == {"n": 7}


def test_an_answer_keeps_every_value(server: Running) -> None:
    assert call(server.path, "echo", zero=0, no=False, none=None, text="ä\n", deep={"a": [1.5]}) == {
        "zero": 0, "no": False, "none": None, "text": "ä\n", "deep": {"a": [1.5]},
    }  # fmt: skip


def test_only_owner_and_group_may_connect(server: Running) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o660


def test_many_requests_on_one_connection_are_answered_in_order(server: Running) -> None:
    with connect(server) as client:
        requests = [{"id": n, "verb": "echo", "args": {"n": n}} for n in range(1, 201)]
        client.sendall("".join(json.dumps(request) + "\n" for request in requests).encode())
        client.shutdown(socket.SHUT_WR)
        greeting, *answers = lines(client)
    assert greeting == {"protocol": control.PROTOCOL}
    assert [answer["id"] for answer in answers] == list(range(1, 201))
    assert answers[41]["ok"] == {"n": 42}


def test_an_error_arrives_as_the_error_it_was(server: Running) -> None:
    with pytest.raises(Unsafe, match="behind") as caught:
        call(server.path, "refuse")
    assert caught.value.hint == "wait"
    with pytest.raises(BadData, match="unknown verb 'nothing'") as unknown:
        call(server.path, "nothing")
    assert "echo" in unknown.value.hint


def test_a_bug_in_a_verb_is_told_without_its_details(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(HoldfastError, match="failed to answer") as caught:
        call(server.path, "break")
    assert "ZeroDivision" not in str(caught.value)
    assert "ZeroDivisionError" in caplog.text
    assert still_answers(server)


NONSENSE = [
    b"\n", b"{}\n", b"[]\n", b"null\n", b"nonsense\n", b'{"verb": 3}\n', b'{"verb": "echo", "args": 3}\n',
    b'{"verb": "echo", "more": 1}\n', b'{"verb": "echo", "id": 1e400}\n', b'{"verb": "echo", "id": 1.5}\n',
    b'\xff\xfe\n', b'{"verb": "\xff"}\n', b'{"verb": "echo", "args": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001 + b"\n",
    b"[" * 60000 + b"\n", b'{"verb": "__class__"}\n', b'{"verb": "echo\\u0000"}\n',
]  # fmt: skip


@pytest.mark.parametrize("request_bytes", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_answered_with_an_error_and_the_connection_lives_on(server: Running, request_bytes: bytes) -> None:
    with connect(server) as client:
        client.sendall(request_bytes + b'{"id": 5, "verb": "echo"}\n')
        client.shutdown(socket.SHUT_WR)
        _, refusal, answer = lines(client)
    assert refusal["error"]["code"] == "bad-data"  # type: ignore[index]
    assert answer == {"id": 5, "ok": {}}


def test_random_bytes_never_stop_the_service(server: Running) -> None:
    source = random.Random(7)
    for _ in range(60):
        with connect(server) as client:
            client.sendall(source.randbytes(source.randrange(1, 4000)) + b"\n" * source.randrange(3))
    assert still_answers(server)


def test_a_line_without_end_costs_the_client_its_connection(server: Running) -> None:
    with connect(server) as client:
        received: list[dict[str, object]] = []

        def read() -> None:
            try:
                received.extend(lines(client))
            except OSError:
                pass  # cut while unread bytes of ours were on the way

        reader = threading.Thread(target=read)
        reader.start()
        with pytest.raises(OSError):
            for _ in range(1000):
                client.sendall(b"x" * 65536)
        reader.join(5)
        assert not reader.is_alive()
    assert still_answers(server)


def test_a_client_that_does_not_read_is_cut_and_holds_nobody_up(
    server: Running, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WRITE_SECONDS", 0.2)
    with connect(server) as slow:
        slow.sendall(b'{"verb": "big", "args": {"bytes": 2000000}}\n' * 20)
        assert still_answers(server)
        until(lambda: not server.server._clients)
        received = 0
        with pytest.raises(OSError):  # what was on the way is lost: the connection was aborted
            while chunk := slow.recv(1 << 20):
                received += len(chunk)
            raise ConnectionResetError
        assert received < 2_000_000
    assert still_answers(server)


def test_an_answer_beyond_the_bound_is_an_error(server: Running) -> None:
    with pytest.raises(BadData, match="too long"):
        call(server.path, "big", bytes=protocol.MAX_ANSWER_BYTES)
    assert len(call(server.path, "big", bytes=protocol.MAX_ANSWER_BYTES - 1000)["text"]) > 1 << 20


def test_idle_clients_cannot_lock_the_operator_out(server: Running) -> None:
    idle = [connect(server) for _ in range(serving.MAX_CLIENTS * 2)]
    try:
        assert still_answers(server)
        for client in idle[: serving.MAX_CLIENTS]:  # the oldest made room
            with contextlib.suppress(ConnectionResetError):
                assert len(list(lines(client))) == 1  # the greeting, then the end
    finally:
        for client in idle:
            client.close()


def test_a_verb_that_stalls_is_given_up(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "VERB_SECONDS", 0.1)
    with pytest.raises(Unavailable, match="longer than 0.1 s"):
        call(server.path, "stall")
    assert server.cancelled == 1


def test_a_client_that_leaves_in_the_middle_is_forgotten(server: Running, until: Until) -> None:
    for part in (b"", b'{"verb"', b'{"verb": "echo"}\n'):
        connect(server).close()
        with connect(server) as client:
            client.sendall(part)
    until(lambda: not server.server._clients)
    assert still_answers(server)


def test_a_second_service_is_refused_but_a_dead_ones_socket_is_taken_over(tmp_path: Path, server: Running) -> None:
    with pytest.raises(Unavailable, match="another service answers"):
        asyncio.run(ControlServer(server.path, {}).start())
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))

    async def restart() -> None:
        fresh = ControlServer(stale, {})
        await fresh.start()
        await fresh.close()

    asyncio.run(restart())


def test_a_path_that_cannot_hold_a_socket_is_refused_with_the_remedy(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    for path in (tmp_path / ("x" * 120), file, file / "control.sock"):
        with pytest.raises(Unavailable) as caught:
            asyncio.run(ControlServer(path, {}).start())
        assert "run_dir" in caught.value.hint
    assert file.read_text() == "precious"


# --- the client, against servers that are not ours ---


class Impostor:
    """Listens and says `words` to each client, then closes or keeps silent."""

    def __init__(self, path: Path, words: bytes, *, close: bool) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self._words, self._close = words, close
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self.listener.accept()
        self._kept.append(client)
        try:
            client.sendall(self._words)
        except OSError:
            pass  # the client had enough
        if self._close:
            client.close()

    def stop(self) -> None:
        self._thread.join(5)
        for client in self._kept:
            client.close()
        self.listener.close()


GREETING = b'{"protocol": "holdfast.control/1"}\n'


@pytest.mark.parametrize(
    ("words", "close", "error", "match"),
    [
        (b"", True, Unreachable, "closed the connection"),
        (b"", False, Unreachable, "does not answer within 0.3 s"),
        (GREETING, True, Unreachable, "no service answers|closed"),
        (GREETING, False, Unreachable, "does not answer"),
        (b"SSH-2.0-OpenSSH\r\n", False, BadData, "does not speak"),
        (b'{"protocol": "holdfast.control/2"}\n', False, BadData, "speaks 'holdfast.control/2'"),
        (GREETING + b"nonsense\n", False, BadData, "does not speak"),
        (GREETING + b'{"id": 2, "ok": {}}\n', False, BadData, "no answer to the question"),
        (GREETING + b'{"id": 1}\n', False, BadData, "no answer"),
        (GREETING + b'{"id": 1, "error": {"code": "x", "message": "m"}}\n', False, HoldfastError, "m"),
        (GREETING + b"x" * (5 << 20), False, BadData, "no end"),
    ],
)
def test_the_command_judges_what_answers(
    tmp_path: Path, words: bytes, close: bool, error: type[HoldfastError], match: str
) -> None:
    impostor = Impostor(tmp_path / "s", words, close=close)
    try:
        began = time.monotonic()
        with pytest.raises(error, match=match):
            call(tmp_path / "s", "status", timeout=0.3 if len(words) < 1000 else 10)
        assert time.monotonic() - began < 10
    finally:
        impostor.stop()


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no service answers") as caught:
        call(tmp_path / "nothing", "status")
    assert "HOLDFAST_CONTROL" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_somebody_without_the_right_is_told_so(server: Running) -> None:
    server.path.parent.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        os.seteuid(65534)
        try:
            call(server.path, "echo")
        except NoPermission:
            os._exit(77)
        except HoldfastError:
            os._exit(3)  # tmp_path itself may be closed to others
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) in (77,)
