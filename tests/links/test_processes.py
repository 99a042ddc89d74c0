# SPDX-License-Identifier: GPL-2.0-or-later
"""The process of a peer is stopped, continued and killed; and carriers, asked of the kernel."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from appliance.carrier import CarrierWatch
from tests.links.cables import Cables, run, until
from tests.links.conftest import PATIENT, QUICK
from tests.links.host import Host, both_up
from tests.links.node import Node
from vmlink.wire import Message, Type


@pytest.fixture
def node(cables: Cables, tmp_path: Path) -> Iterator[Callable[..., Node]]:
    made: list[Node] = []

    def make(place: str, timing: object = PATIENT) -> Node:
        made.append(Node(cables, place, timing, tmp_path / f"{place}{len(made)}.log"))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        each.kill()


@pytest.mark.parametrize("place", ["alpha", "beta"])
def test_a_stopped_process_is_silent_and_knows_it_afterwards(host: Callable[..., Host], node: Callable[..., Node],
                                                             place: str) -> None:
    here = host("beta" if place == "alpha" else "alpha", QUICK)
    there = node(place, QUICK)
    both_up(here)
    there.pause()
    until("its silence is noticed", lambda: here.downs)
    assert "silent for" in here.downs[0]
    there.go_on()
    until("it hears that it was given up", lambda: there.said("down"))
    assert there.said("down")[0]["doubtful"], "it was itself that stood still"
    until("both join again", lambda: len(there.said("up")) == 2 and len(here.links_up()) == 2)
    here.send(Message(Type.ACK, 1, 2, 99))
    until("the new session carries messages", lambda: there.said("message"))


def test_a_short_stop_goes_unnoticed(host: Callable[..., Host], node: Callable[..., Node]) -> None:
    """What waits in the sockets when it goes on tells that the peer lives."""
    here, there = host("alpha"), node("beta")
    both_up(here)
    there.pause()
    heard = len(here.heard)
    for number in range(3):
        here.send(Message(Type.ACK, 1, 2, number))
    there.go_on()
    until("what was sent meanwhile arrives", lambda: len(there.said("message")) == 3)
    until("and it is heard again", lambda: len(here.heard) > heard)
    assert not here.downs and not there.said("down")


@pytest.mark.parametrize("place", ["alpha", "beta"])
def test_a_killed_process_is_noticed_by_its_end(host: Callable[..., Host], node: Callable[..., Node],
                                                place: str) -> None:
    """Its kernel closes the connections: no timeout is waited for. What starts in its place is a new session."""
    here, there = host("beta" if place == "alpha" else "alpha"), node(place)
    both_up(here)
    session = here.session()
    there.kill()
    until("its end is noticed", lambda: here.downs)
    assert "silent" not in here.downs[0] and not here.events[-1][2], "no doubt that it is gone"
    node(place)
    both_up(here)
    assert here.session() not in (0, session)
    assert [event for event, *_ in here.events] == ["up", "down", "up"]


class Watch:
    """A CarrierWatch in beta that counts what it is told."""

    def __init__(self, cables: Cables) -> None:
        self.told = asyncio.Event()
        with cables.inside("beta"):
            self.watch = CarrierWatch(self.told.set)
        self.carrier = self.watch.carrier

    async def hears(self) -> None:
        await asyncio.wait_for(self.told.wait(), 10)
        self.told.clear()


def watching(cables: Cables, scene: Callable[[Watch], Awaitable[None]]) -> None:
    defects: list[object] = []

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: defects.append(context))
        watch = Watch(cables)
        try:
            await scene(watch)
        finally:
            watch.watch.close()

    asyncio.run(whole())
    assert not defects


def test_the_carrier_is_asked_of_the_kernel(cables: Cables) -> None:
    async def scene(it: Watch) -> None:
        assert it.carrier("link0") and it.carrier("link1")
        assert not it.carrier("nosuch0") and not it.carrier("n" * 40)
        cables.cut("link0", at="alpha")
        assert not it.carrier("link0") and it.carrier("link1"), "known at once, whatever is told when"
        cables.mend("link0", at="alpha")
        assert it.carrier("link0")
        cables.cut("link1", at="beta")
        assert not it.carrier("link1"), "one's own end down is no carrier either"
        await it.hears()
        run("ip", "-n", cables.namespaces["beta"], "link", "del", "link1")
        assert not it.carrier("link1")

    watching(cables, scene)


def test_more_events_than_the_socket_holds(cables: Cables) -> None:
    """An overrun is a reason to ask like any other, and not the end of the watch."""

    async def scene(it: Watch) -> None:
        it.watch._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the smallest there is
        for _ in range(50):  # nobody reads meanwhile
            cables.cut("link0", at="beta")
            cables.mend("link0", at="beta")
        for _ in range(2):
            await it.hears()
            cables.cut("link0", at="beta")
            cables.mend("link0", at="beta")
        await it.hears()

    watching(cables, scene)
