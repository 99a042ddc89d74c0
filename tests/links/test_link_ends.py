# SPDX-License-Identifier: GPL-2.0-or-later
"""A link ends when it is told to, whatever it is doing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import pytest

from appliance.link import Hello, Link
from tests.links.cables import Cables, until
from tests.links.conftest import PATIENT
from tests.links.host import Host
from tests.links.speaker import Exchange, Speaker
from vmlink.wire import Message, Type


class Nobody:
    """A listener that wants nothing."""

    def hello(self, link: Link) -> Hello:
        return Hello("alpha", 1, True)

    def judge(self, link: Link, theirs: Hello) -> str:
        return ""

    def joined(self, link: Link, theirs: Hello) -> None:
        pass

    def left(self, link: Link, reason: str) -> None:
        pass


@pytest.mark.parametrize("turns", range(5))
@pytest.mark.parametrize("greeting", ["fails", "ends"])
def test_the_greeting_ends_at_the_same_moment(turns: int, greeting: str, cables: Cables,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a greeting must not hide that the link was told to end."""

    async def scene() -> None:
        begun, finish = asyncio.Event(), asyncio.Event()

        async def call(sock: socket.socket) -> Hello:
            begun.set()
            await finish.wait()
            if greeting == "fails":
                raise ConnectionResetError("gone")
            return Hello("beta", 1, True)

        link = Link(cables.config("alpha", timing=PATIENT).link[0], PATIENT, Nobody(), dials=True)  # type: ignore[arg-type]
        monkeypatch.setattr(link, "_call", call)
        monkeypatch.setattr(link, "_new_socket", socket.socket)
        link.start()
        await begun.wait()
        finish.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(link.close())
        await asyncio.wait([closing], timeout=3)
        ended = closing.done()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        assert ended

    asyncio.run(scene())


def in_a_greeting(cables: Cables) -> Speaker:
    return Speaker.call(cables, "link0")


def in_half_a_message(cables: Cables) -> Speaker:
    speaker = Speaker.call(cables, "link0")
    speaker.greet(7)
    speaker.raw(b"HFST")
    return speaker


@pytest.mark.parametrize("state", [in_a_greeting, in_half_a_message])
def test_an_accepting_host_stops(cables: Cables, host: Callable[..., Host],
                                 state: Callable[[Cables], Speaker]) -> None:
    beta = host("beta")
    speaker = state(cables)
    beta.stop()
    assert speaker.ended()
    speaker.close()


def test_a_host_stops_while_a_message_is_handled(cables: Cables, host: Callable[..., Host]) -> None:
    beta, begun = host("beta"), []

    async def for_ever(message: object) -> None:
        begun.append(message)
        await asyncio.Event().wait()

    beta.on_message = for_ever
    alpha = host("alpha")
    until("a link is up", alpha.links_up)
    alpha.send(Message(Type.ACK))
    until("the message is being handled", lambda: begun)
    beta.stop()
    until("alpha notices", lambda: alpha.downs)


def test_a_calling_host_stops_while_it_waits_for_an_answer(cables: Cables, host: Callable[..., Host]) -> None:
    exchange = Exchange(cables)
    alpha = host("alpha")
    speaker = exchange.answer("link0")
    speaker.hello()
    alpha.stop()
    assert speaker.ended()
    exchange.close()
