# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams over the control socket: they end with either end, and no reader holds anybody up."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.control import call, stream
from appliance.control import server as serving
from appliance.control.server import ControlServer
from appliance.errors import NoPermission, Unavailable, Unreachable
from tests.control.conftest import Running

Until = Callable[[Callable[[], object]], None]


def asking(server: Running, verb: str, **args: object) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(10)
    client.connect(str(server.path))
    client.sendall(json.dumps({"id": 1, "verb": verb, "args": args}).encode() + b"\n")
    return client


def test_items_come_in_order_and_the_end_is_told(server: Running) -> None:
    assert list(stream(server.path, "count", to=5)) == [{"n": n} for n in range(5)]


def test_a_question_may_follow_a_stream(server: Running) -> None:
    with asking(server, "count", to=2) as client, client.makefile("rb") as lines:
        said = [json.loads(next(lines)) for _ in range(4)]
        assert said[1:] == [{"id": 1, "item": {"n": 0}}, {"id": 1, "item": {"n": 1}}, {"id": 1, "ok": {}}]
        client.sendall(b'{"id": 2, "verb": "echo", "args": {"n": 7}}\n')
        assert json.loads(next(lines)) == {"id": 2, "ok": {"n": 7}}


def test_an_item_comes_when_it_is_there_not_when_the_next_one_is(server: Running) -> None:
    items = stream(server.path, "wait", first={"now": True})
    assert next(items) == {"now": True}
    assert server.streams == 1
    items.close()


def test_a_reader_that_leaves_ends_its_stream(server: Running, until: Until) -> None:
    items = stream(server.path, "wait", first={})
    next(items)
    items.close()
    until(lambda: server.streams == 0 and not server.server._clients)


@pytest.mark.parametrize("word", [b"x", b'{"id": 2, "verb": "echo"}\n', b"\n" * 1000])
def test_a_reader_that_speaks_ends_its_stream(server: Running, until: Until, word: bytes) -> None:
    with asking(server, "wait", first={}) as client:
        until(lambda: server.streams == 1)
        client.sendall(word)
        until(lambda: server.streams == 0)
    assert call(server.path, "echo", n=1) == {"n": 1}


def test_a_reader_that_does_not_read_is_cut_and_holds_nobody_up(
    server: Running, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "WRITE_SECONDS", 0.2)
    with asking(server, "flood"):
        until(lambda: server.streams == 1)
        assert call(server.path, "echo", n=7) == {"n": 7}
        quick = stream(server.path, "flood")
        for _ in range(50):
            next(quick)
        until(lambda: server.streams == 1)
        assert next(quick)
        quick.close()
    until(lambda: server.streams == 0)


def test_streams_leave_room_for_questions(server: Running) -> None:
    open_streams = [stream(server.path, "wait", first={}) for _ in range(serving.MAX_STREAMS)]
    for items in open_streams:
        next(items)
    with pytest.raises(Unavailable, match="streams are open"):
        next(stream(server.path, "wait", first={}))
    idle = [asking(server, "echo") for _ in range(serving.MAX_CLIENTS)]
    assert call(server.path, "echo", n=7) == {"n": 7}
    assert server.streams == serving.MAX_STREAMS, "idle clients made room, streams did not"
    for client in idle:
        client.close()
    for items in open_streams:
        items.close()


def test_an_error_within_a_stream_arrives_as_the_error_it_was(server: Running) -> None:
    items = stream(server.path, "break-off")
    assert next(items) == {"n": 0}
    with pytest.raises(Unavailable, match="no more of it"):
        next(items)


def test_a_stream_that_does_not_come_in_time(server: Running) -> None:
    items = stream(server.path, "wait", first={}, until=time.monotonic() + 0.2)
    next(items)
    with pytest.raises(TimeoutError):
        next(items)


def test_a_service_that_ends_ends_its_streams(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    items = stream(server.path, "wait", first={})
    next(items)
    server.run(server.server.close())
    assert server.streams == 0
    with pytest.raises(Unreachable):
        next(items)
    assert caplog.records == []
    server.run(server.server.start())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give the socket away")
def test_the_socket_is_the_groups(tmp_path: Path) -> None:
    for group, expected in ((grp.getgrgid(1).gr_name, 1), ("no-such-group", os.getegid())):
        path = tmp_path / group

        async def look(path: Path = path, group: str = group) -> int:
            server = ControlServer(path, {}, group=group)
            await server.start()
            owner = os.stat(path).st_gid
            await server.close()
            return owner

        assert asyncio.run(look()) == expected


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_who_is_not_root_may_only_look(server: Running) -> None:
    """In a process of its own: what the kernel says of the other end counts, not what it says itself."""
    for directory in (server.path.parent, *server.path.parent.parents):
        if directory == Path("/tmp"):
            break
        directory.chmod(0o755)
    server.path.chmod(0o666)
    answers = []
    for verb in ("look", "echo", "wait"):
        pid = os.fork()
        if pid == 0:
            code = 1
            with contextlib.suppress(BaseException):
                os.setgid(65534)
                os.setuid(65534)
                try:
                    list(stream(server.path, verb)) if verb == "wait" else call(server.path, verb)
                    code = 0
                except NoPermission:
                    code = 77
            os._exit(code)
        answers.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert answers == [0, 77, 77]
