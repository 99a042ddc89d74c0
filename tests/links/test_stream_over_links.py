# SPDX-License-Identifier: GPL-2.0-or-later
"""Two peers over two real cables: nothing lost, doubled or reordered whichever cable goes; and who notices what."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from appliance import config as cfg
from appliance.errors import Unavailable
from appliance.link import LOOSE_LIMIT
from tests.links.cables import LINKS, Cables, address, other, run, until
from tests.links.conftest import PATIENT, QUICK
from tests.links.host import NOISE, Host, both_up, noted
from vmlink.wire import Message, Type

Pair = Callable[..., tuple[Host, Host]]
MIB = 1 << 20


def received(host: Host) -> int:
    return sum(size for *_, size, _ in host.received)


def arrived(alpha: Host, beta: Host) -> None:
    """All that was sent has arrived: once, in order, unchanged, within one session."""
    until("all has arrived", lambda: len(alpha.received) >= len(beta.sent) and len(beta.received) >= len(alpha.sent))
    assert beta.received == alpha.sent and alpha.received == beta.sent
    assert [event for event, *_ in alpha.events] == [event for event, *_ in beta.events] == ["up"]


def test_a_session_begins(pair: Pair) -> None:
    alpha, beta = pair()
    assert alpha.session() == beta.session() != 0
    assert [event for event, *_ in alpha.events] == [event for event, *_ in beta.events] == ["up"]
    for host in (alpha, beta):
        status = host.do(host.peer.status)
        assert (status["name"], status["state"]) == (other(host.place), "up")
        assert [(link["name"], link["carrier"], link["reason"]) for link in status["links"]] == [
            (link, True, "") for link in LINKS]
        until("a round trip was measured", lambda host=host: host.link("link1")["rtt_us"])
        assert sum(link["active"] for link in status["links"]) == 1
    message = Message(Type.STATE, 2**64 - 1, 2**63, 7, (b"a", b"", b"bc"))
    alpha.send(message, Message(Type.ACK))
    beta.send(Message(Type.COMMIT, 1, 2, 3, (b"x" * 24,)))
    arrived(alpha, beta)


def test_a_session_begins_over_ipv6(pair: Pair) -> None:
    alpha, beta = pair(v6=True)
    alpha.send(Message(Type.ACK, 1, 2, 3))
    arrived(alpha, beta)


@pytest.mark.parametrize("kind", ["cut at alpha", "cut at beta", "silence"])
@pytest.mark.parametrize("first", LINKS)
def test_a_stream_survives_the_loss_of_either_link(cables: Cables, pair: Pair, first: str, kind: str) -> None:
    """Both ways at once, many MiB; one link goes and comes back, then the other goes."""
    alpha, beta = pair(QUICK if kind == "silence" else PATIENT)
    second = LINKS[1 - LINKS.index(first)]
    enough = threading.Event()
    streams = [alpha.stream(enough, 1), beta.stream(enough, 2)]
    try:
        moved(alpha, beta, 4)
        lose(cables, first, kind)
        until(f"{first} is down", lambda: alpha.links_up() == beta.links_up() == [second])
        moved(alpha, beta, 4)
        mend(cables, first, kind)
        both_up(alpha, beta)
        moved(alpha, beta, 4)
        lose(cables, second, kind)
        until(f"{second} is down", lambda: alpha.links_up() == beta.links_up() == [first])
        moved(alpha, beta, 4)
    finally:
        enough.set()
    for stream in streams:
        stream.result(30)
    assert received(alpha) > 16 * MIB and received(beta) > 16 * MIB
    arrived(alpha, beta)
    assert alpha.peer._sender.kept_bytes == beta.peer._sender.kept_bytes == 0


def moved(alpha: Host, beta: Host, mib: int) -> None:
    """Wait until so much more has arrived on both sides."""
    goals = [(host, received(host) + mib * MIB) for host in (alpha, beta)]
    until("the stream moves on", lambda: all(received(host) > goal for host, goal in goals))


def lose(cables: Cables, link: str, kind: str) -> None:
    if kind == "silence":
        cables.mute(link)
    else:
        cables.cut(link, at=kind.split()[-1])


def mend(cables: Cables, link: str, kind: str) -> None:
    if kind == "silence":
        cables.unmute()
    else:
        cables.mend(link, at=kind.split()[-1])


def test_messages_that_may_be_lost_are_not_without_need(pair: Pair) -> None:
    """More of them than may wait at once, while the other side reads."""
    alpha, beta = pair()
    message = Message(Type.INBOUND, 1, 2, 3, (NOISE[:MIB],))
    for number in range(1, 2 * LOOSE_LIMIT // MIB):
        until("one more is taken", lambda: alpha.do(lambda: alpha.peer.send_loose(message)))
        until("one more arrives", lambda number=number: len(beta.received) == number)
    assert set(beta.received) == {noted(message)}


def test_a_lost_carrier_is_noticed_at_once(cables: Cables, pair: Pair) -> None:
    """Long before silence would tell. The best of some cuts counts: the machine may be busy."""
    alpha, beta = pair()
    delays = []
    for number in range(4):
        link, at = LINKS[number % 2], ("alpha", "beta")[number // 2]
        before = len(alpha.lost), len(beta.lost)
        cut = time.monotonic()
        cables.cut(link, at)
        for host, count in zip((alpha, beta), before, strict=True):
            until("the lost carrier is noticed", lambda host=host, count=count: len(host.lost) > count)
            moment, name, reason = host.lost[count]
            assert (name, reason) == (link, "carrier lost")
            delays.append(moment - cut)
        assert not alpha.link(link)["carrier"]
        cables.mend(link, at)
        both_up(alpha, beta)
    assert min(delays[0::2]) < 0.1 and min(delays[1::2]) < 0.1, delays
    assert not alpha.downs and not beta.downs


def test_the_kernel_tells_of_a_lost_carrier(cables: Cables, pair: Pair) -> None:
    """Nobody waits for the next heartbeat to look."""
    alpha, beta = pair(cfg.Timing(hello=40.0, timeout=120.0, reconnect=0.02))
    cables.cut("link1", at="beta")
    until("the lost carrier is noticed", lambda: alpha.lost and beta.lost)
    assert alpha.lost[0][1:] == beta.lost[0][1:] == ("link1", "carrier lost")


def test_both_carriers_gone_is_the_end_of_the_peer(cables: Cables, pair: Pair) -> None:
    alpha, beta = pair()
    session = alpha.session()
    for link in LINKS:
        cables.cut(link)
    for host in (alpha, beta):
        until("the peer is down", lambda host=host: host.downs)
        assert host.events[1:] == [("down", "no link left (link0: carrier lost, link1: carrier lost)", False)]
        assert not host.call(host.peer.room), "nobody waits for room any more"
        host.do(lambda host=host: host.peer.send(Message(Type.ACK)))  # goes nowhere
        assert host.peer._sender.kept_bytes == 0
        assert not host.do(lambda host=host: host.peer.send_loose(Message(Type.INBOUND)))
    for link in LINKS:
        cables.mend(link)
    both_up(alpha, beta)
    assert alpha.session() == beta.session() not in (0, session)
    alpha.send(Message(Type.ACK, 1, 2, 3))
    until("the new session carries messages", lambda: beta.received == alpha.sent)


def test_silence_is_noticed_after_the_timeout(cables: Cables, pair: Pair) -> None:
    """The carriers stay, but beta hears nothing; alpha then hears nothing either."""
    alpha, beta = pair(QUICK)
    muted = time.monotonic()
    cables.mute(*LINKS)
    for host in (beta, alpha):
        until("silence is noticed", lambda host=host: host.downs)
        assert "link0: silent for" in host.downs[0] and "link1: silent for" in host.downs[0]
        last = host.lost[-1][0]
        assert last - muted > QUICK.timeout - 3 * QUICK.hello
        assert all(link["carrier"] for link in host.do(host.peer.status)["links"])
    cables.unmute()
    both_up(alpha, beta)


def test_one_silent_link_is_not_the_end(cables: Cables, pair: Pair) -> None:
    alpha, beta = pair(QUICK)
    cables.mute("link0")
    until("silence is noticed", lambda: alpha.links_up() == beta.links_up() == ["link1"])
    assert "silent for" in alpha.link("link0")["reason"] or "link0" in alpha.link("link0")["reason"]
    alpha.send(Message(Type.ACK, 1, 2, 3))
    arrived(alpha, beta)


def test_a_restarted_peer_begins_a_new_session(pair: Pair, host: Callable[..., Host]) -> None:
    for gone, stays in ((0, 1), (1, 0)):
        hosts = pair()
        old, other_one = hosts[gone], hosts[stays]
        session = other_one.session()
        old.send(*(Message(Type.ACK, 1, 2, number) for number in range(5)))
        until("the messages arrive", lambda other_one=other_one, old=old: other_one.received == old.sent)
        old.stop()
        until("its end is noticed", lambda other_one=other_one: len(other_one.downs) == 1)
        new = host(old.place)
        both_up(new, other_one)
        assert new.session() == other_one.session() not in (0, session)
        assert [event for event, *_ in other_one.events] == ["up", "down", "up"]
        new.send(Message(Type.ACK, 1, 2, 99))
        other_one.send(Message(Type.ACK, 1, 2, 98))
        until("numbers begin anew", lambda o=other_one, n=new: o.received[5:] == n.sent and n.received == o.sent)
        new.stop()
        other_one.stop()


def test_a_handler_that_takes_its_time_does_not_make_the_peer_silent(pair: Pair) -> None:
    """What the peer says meanwhile waits in the socket; it is not dead."""
    alpha, beta = pair(QUICK)

    async def slow(message: Message) -> None:
        if message.type is Type.ACK:
            await asyncio.sleep(2 * QUICK.timeout)

    beta.on_message = slow
    alpha.send(Message(Type.ACK, 1, 2, 3))
    alpha.do(lambda: alpha.peer.send_loose(Message(Type.INBOUND, 1, 2, 3)))  # over the other link
    until("the messages arrive", lambda: len(beta.received) == 2)
    assert not alpha.downs and not beta.downs and not beta.lost


def test_answers_give_a_lease_that_moves_on(pair: Pair) -> None:
    """`peer_heard` gives a moment of our own clock, at most the longest lease ahead."""
    alpha, _ = pair()
    until("signs of life are confirmed", lambda: len(alpha.heard) > 20)
    assert all(0 < moment <= now + QUICK.lease_max for moment, now in alpha.heard)
    assert alpha.heard[-1][0] > alpha.heard[0][0]
    assert alpha.heard[-1][0] > alpha.heard[-1][1], "between two answers a lease is running"


@pytest.mark.parametrize("ends", ["both carriers", "beta hears nothing more"])
def test_no_lease_outlasts_what_the_other_side_waits_for(pair: Pair, cables: Cables, ends: str) -> None:
    """The clocks of the two hosts are one here, so that the bound can be compared with what it bounds."""
    alpha, beta = pair(QUICK)
    until("signs of life are confirmed", lambda: len(alpha.heard) > 5)
    if ends == "both carriers":
        for link in ("link0", "link1"):
            cables.cut(link)
    else:
        cables.mute("link0", "link1", at="beta")
    until("both sides give the other up", lambda: bool(alpha.downs and beta.downs))
    assert beta.bounds[-1] >= max(moment for moment, _ in alpha.heard)
    assert alpha.bounds[-1] >= max(moment for moment, _ in beta.heard)


def test_an_address_that_is_not_there(cables: Cables, host: Callable[..., Host]) -> None:
    run("ip", "-n", cables.namespaces["beta"], "addr", "del", f"{address('beta', 'link1')}/24", "dev", "link1")
    with pytest.raises(Unavailable, match="link link1: 169.254.78.2 port 7780 on link1: ") as caught:
        host("beta")
    assert "with that address" in caught.value.hint


def test_an_address_in_use(host: Callable[..., Host]) -> None:
    host("beta")
    with pytest.raises(Unavailable, match="Address already in use"):
        host("beta")
