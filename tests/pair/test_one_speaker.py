# SPDX-License-Identifier: GPL-2.0-or-later
"""One speaker, on the wire: whatever happens to a host, the VM's MAC comes from one port of the switch at a time."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest

from appliance.config import Link
from appliance.lab.topology import HOSTS, LINKS, inside, link_address
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

PORT = Link(name="", interface="", address="", peer="").port


def test_a_crash_of_each_host(pair: Pair) -> None:
    for _ in HOSTS:
        primary, backup = pair.protected()
        pair.client.goes_on()  # the primary has spoken, however soon this follows the last look at the wire
        pair.lab.fault("crash", primary)
        until(f"{backup} takes over", lambda host=backup: pair.vm(host).get("role") == "primary")  # type: ignore[misc]
        pair.client.goes_on()
        pair.nothing_left(primary)
        pair.heal(primary)
        assert pair.protected() == (backup, primary)
        pair.sound(primary, backup)


@pytest.mark.parametrize("pause", [0.15, 0.27, 0.31, 0.35, 0.45, 1.0])
def test_a_service_that_stands_still_and_wakes_up(pair: Pair, pause: float) -> None:
    """Around the moment at which the peer gives it up: either goes on, never both."""
    primary, backup = pair.protected()
    pair.lab.fault("service-pause", primary)
    wake_at = time.monotonic() + pause
    until("it is time to wake up", lambda: time.monotonic() > wake_at)
    pair.heal(primary)
    pair.client.goes_on()
    assert set(pair.protected()) == {primary, backup}
    assert pair.sound() in ([primary], [primary, backup])


@pytest.mark.parametrize("link", ["link-down:0", "link-down:1"])
def test_one_link_is_enough(pair: Pair, link: str) -> None:
    primary, backup = pair.protected()
    term = pair.term()
    pair.lab.fault(link, backup)
    pair.client.goes_on()
    assert pair.protected() == (primary, backup)
    pair.heal(backup)
    until("both links are up", lambda: _links(pair, primary) == _links(pair, backup) == {"up"})
    pair.client.goes_on()
    assert (pair.protected(), pair.term()) == ((primary, backup), term)
    pair.sound(primary)


@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.0\r\n\r\n" * 8, bytes(1 << 16)])
def test_a_stranger_at_the_links_changes_nothing(pair: Pair, words: bytes) -> None:
    """Whoever can reach the port from the peer's host: a connection is not the peer, and its end is no death."""
    primary, backup = pair.protected()
    term = pair.term()
    with contextlib.ExitStack() as undo:
        for number in range(len(LINKS)):
            with inside(pair.lab.netns("alpha")):
                caller = undo.enter_context(socket.socket())
            caller.settimeout(5)
            caller.bind((link_address(number, "alpha"), 0))
            caller.connect((link_address(number, "beta"), PORT))
            with contextlib.suppress(ConnectionError):  # refused in the middle of it
                caller.sendall(words)
        pair.client.goes_on()
    pair.client.goes_on()
    assert (pair.protected(), pair.term()) == ((primary, backup), term)
    assert _links(pair, primary) == _links(pair, backup) == {"up"}
    pair.sound(primary)


def _links(pair: Pair, host: str) -> set[str]:
    """The states of the links, as `host` sees them."""
    reply = pair.lab.host_status(host) or {}
    return {link["state"] for link in reply.get("peer", {}).get("links", [])}
