# SPDX-License-Identifier: GPL-2.0-or-later
"""What the other side of a link may do wrong: refused for a stated reason, and the session goes on where it can."""

from __future__ import annotations

import asyncio
import random
import re
import resource
import select
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from appliance import link as link_module
from tests.links.cables import Cables, run, until
from tests.links.conftest import QUICK
from tests.links.host import Host, both_up, noted
from tests.links.speaker import BEAT, Exchange, Speaker, frame, odd_frame
from vmlink.wire import HEADER, MAX_PAYLOAD, Message, Type, WireError, encode_header

SESSION = 4711
ACK = Message(Type.ACK, 1, 2, 3)


@pytest.fixture
def beta(host: Callable[..., Host]) -> Host:
    """A real host that waits to be called; the test plays alpha."""
    return host("beta")


@pytest.fixture
def call(cables: Cables) -> Iterator[Callable[..., Speaker]]:
    """Connects to beta."""
    made: list[Speaker] = []

    def to_beta(link: str = "link0", **more: Any) -> Speaker:
        made.append(Speaker.call(cables, link, **more))
        return made[-1]

    yield to_beta
    for speaker in made:
        speaker.close()


@pytest.fixture
def session(beta: Host, call: Callable[..., Speaker]) -> tuple[Speaker, Speaker]:
    """Both links joined."""
    speakers = call("link0"), call("link1")
    for speaker in speakers:
        assert speaker.greet(SESSION)["refused"] == ""
    until("both links are up", lambda: beta.links_up() == ["link0", "link1"])
    return speakers


Call = Callable[..., Speaker]


def goes_on(beta: Host, speaker: Speaker, seq: int = 1) -> None:
    """The session lives: the next message over this link is taken."""
    before = len(beta.received)
    speaker.say(Message(Type.STATE, 5, 6, seq), seq)
    until("the session goes on", lambda: len(beta.received) > before)
    assert beta.received[-1] == noted(Message(Type.STATE, 5, 6, seq, (b"",)))
    assert not beta.downs


# --- on a link that is up -----------------------------------------------------------------------------

def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


def named(value: object) -> str | None:
    """The id of a case: what is expected, and not the bytes."""
    return value[:30] if isinstance(value, str) else "raw" if isinstance(value, bytes) else None


PAGES = frame(Message(Type.PAGES, 1, 2, 3, (b"x" * 1000,)), 1)


@pytest.mark.parametrize("data, why", [
    (b"GET / HTTP/1.1\r\n" * 4, "not a Holdfast frame (starts with b'GET ')"),
    (bytes(64), "not a Holdfast frame"),
    (odd_frame(version=2), "the peer speaks wire version 2, this host 1"),
    (flipped(PAGES, 20), "a corrupt header"),
    (flipped(PAGES, 63), "a corrupt header"),
    (flipped(PAGES, 64), "a corrupt PAGES payload"),
    (flipped(PAGES, len(PAGES) - 1), "a corrupt PAGES payload"),
    (odd_frame(length=MAX_PAYLOAD + 1), "a payload of 4194305 bytes announced"),
    (odd_frame(length=2**32 - 1), "a payload of 4294967295 bytes announced"),
    (odd_frame(kind=99), "unknown message type 99"),
    (odd_frame(reserved=7), "announced"),
    (frame(ACK, 2), "message 2 after 0: 1 are missing"),
    (frame(ACK, 2**64 - 1), "are missing"),
    (frame(Message(Type.BEAT, payload=(b"x",))), "a heartbeat of 1 bytes"),
    (frame(Message(Type.BEAT, payload=(BEAT.pack(5, 0, 0, 0, 0, 0),))), "acknowledges message 5, but only 0 were sent"),
    (frame(Message(Type.BEAT, payload=(BEAT.pack(0, 1, 0, 2**63, 0, 0),))), "a heartbeat that echoes one not yet sent"),
    (frame(Message(Type.BEAT, payload=(BEAT.pack(0, 1, 2**63, 0, 0, 0),))), "a lease of 9223372037 s"),
    (frame(Message(Type.HELLO, payload=(b"{}",))), "a second hello"),
], ids=named)
def test_what_makes_no_sense_ends_the_link_not_the_session(beta: Host, session: tuple[Speaker, Speaker], data: bytes,
                                                           why: str) -> None:
    for bad, good in (session, session[::-1]):
        name = "link0" if bad is session[0] else "link1"
        if bad is session[1]:
            session[0].close()
            again = Speaker.call(beta._cables, "link0")
            assert again.greet(SESSION, fresh=False)["refused"] == ""
            until("both links are up", lambda: len(beta.links_up()) == 2)
            good = again
        bad.raw(data)
        assert bad.ended()
        until("the link is down", lambda name=name: name not in beta.links_up())
        assert why in beta.link(name)["reason"]
        assert not beta.received[1:]
        goes_on(beta, good, len(beta.received) + 1)
        if data == frame(ACK, 2):
            return  # it would be in order now
    again.close()


@pytest.mark.parametrize("end", [1, 63, 64, 65, len(PAGES) - 1])
def test_a_truncated_message_ends_the_link_not_the_session(beta: Host, session: tuple[Speaker, Speaker],
                                                           end: int) -> None:
    session[0].raw(PAGES[:end])
    session[0].socket.shutdown(socket.SHUT_WR)
    until("the link is down", lambda: beta.links_up() == ["link1"])
    assert beta.link("link0")["reason"] == "the peer closed the connection"
    assert not beta.received
    goes_on(beta, session[1])


def test_doubled_numbers_are_taken_once(beta: Host, session: tuple[Speaker, Speaker]) -> None:
    for seq in (1, 1, 2, 1, 2, 3):
        session[0].say(Message(Type.STATE, 1, 2, seq), seq)
    for seq in (2, 3, 4, 3):
        session[1].say(Message(Type.STATE, 1, 2, seq), seq)
    until("all are taken", lambda: len(beta.received) == 4)
    goes_on(beta, session[1], 5)
    assert [epoch for _, _, _, epoch, _, _ in beta.received] == [1, 2, 3, 4, 5]
    assert beta.links_up() == ["link0", "link1"]


def test_a_reordered_stream_goes_on_where_it_is_in_order(beta: Host, session: tuple[Speaker, Speaker]) -> None:
    session[0].raw(frame(ACK, 1) + frame(ACK, 3) + frame(ACK, 2))
    assert session[0].ended()
    until("the link is down", lambda: beta.links_up() == ["link1"])
    assert beta.link("link0")["reason"] == "message 3 after 1: 1 are missing"
    assert len(beta.received) == 1
    goes_on(beta, session[1], 2)


def test_a_message_that_makes_no_sense_to_its_receiver_ends_the_session(beta: Host, session: tuple[Speaker, Speaker],
                                                                        call: Call) -> None:
    """It was received in order, and there is no second way to receive it."""

    async def refuse(message: Message) -> None:
        raise WireError("an ACK of nothing")

    beta.on_message = refuse
    session[0].say(ACK, 1)
    assert session[0].ended() and session[1].ended()
    until("the session is over", lambda: beta.downs)
    assert beta.downs == ["no link left (link0: an ACK of nothing, link1: an ACK of nothing)"]
    beta.on_message = None
    speaker = call()
    assert speaker.greet(SESSION + 1)["refused"] == ""
    until("a new session begins", lambda: beta.events[-1][0] == "up")


def test_a_defect_of_the_receiver_is_not_taken_for_a_broken_link(beta: Host, session: tuple[Speaker, Speaker]) -> None:
    """Else the message would be missing, and the stream would go on without it over the other link."""

    async def fail(message: Message) -> None:
        raise OSError(28, "No space left on device")

    beta.on_message = fail
    session[0].say(ACK, 1)
    until("the defect is reported", lambda: beta.defects)
    assert "No space left on device" in beta.defects.pop()


def test_noise(beta: Host, call: Call) -> None:
    """Random bytes before and after the hello, many times over; the next honest caller is welcome."""
    rng = random.Random(3)
    for number in range(40):
        speaker = call(("link0", "link1")[number % 2])
        if number % 4 >= 2:
            speaker.greet(SESSION + number)
        data = rng.randbytes(rng.choice((1, 63, 64, 65, 500)))
        speaker.raw(data if number % 3 else frame(ACK, 1)[:20] + data)
        speaker.close()
    for name in ("link0", "link1"):
        assert call(name).greet(SESSION)["refused"] == ""
    until("both links are up", lambda: beta.links_up() == ["link0", "link1"])


# --- before the hello ---------------------------------------------------------------------------------

@pytest.mark.parametrize("data, why", [
    (b"GET / HTTP/1.1\r\n" * 4, "not a Holdfast frame"),
    (frame(ACK, 1), "ACK before the hello"),
    (frame(Message(Type.HELLO, payload=(b"",))), "a hello that cannot be read"),
    (frame(Message(Type.HELLO, payload=(b"{}",))), "a hello that cannot be read: .*host"),
    (frame(Message(Type.HELLO, payload=(b"\xff\xfe",))), "a hello that cannot be read"),
    (frame(Message(Type.HELLO, payload=(b'{"host":"\xff"}',))), "a hello that cannot be read"),
    (frame(Message(Type.HELLO, payload=(b"[" * 3000,))), "a hello that cannot be read"),
    (odd_frame(b"x", kind=Type.HELLO, length=MAX_PAYLOAD), "a hello of 4194304 bytes"),
    (flipped(PAGES, 20), "a corrupt header"),
    (flipped(PAGES, 64), "PAGES before the hello"),
], ids=named)
@pytest.mark.parametrize("joined", [False, True])
def test_who_does_not_say_hello_is_sent_away(beta: Host, call: Call, data: bytes, why: str, joined: bool,
                                             caplog: pytest.LogCaptureFixture) -> None:
    """And does no harm to a link that is up."""
    good = call()
    if joined:
        good.greet(SESSION)
        until("the link is up", lambda: beta.links_up() == ["link0"])
    bad = call()
    if not joined:
        good.close()
    bad.raw(data)
    assert bad.ended()
    until("the reason is told", lambda: any(re.search(why, said) for said in caplog.messages))
    if joined:
        goes_on(beta, good)
    else:
        assert not beta.events and not beta.links_up()
        assert call().greet(SESSION)["refused"] == ""


def test_a_caller_of_another_version_is_told(beta: Host, call: Call, caplog: pytest.LogCaptureFixture) -> None:
    bad = call()
    bad.raw(odd_frame(b"whatever it says", version=2, kind=1))
    told = bad.hello()
    assert bad.ended()
    assert "wire version 2, this host 1: run the same Holdfast release on both hosts" in told["refused"]
    assert "speaks wire version 2" in beta.link("link0")["reason"]


def test_who_says_nothing_is_sent_away(beta: Host, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HELLO_TIMEOUT", 0.1)
    silent, honest = call(), call()
    assert honest.greet(SESSION)["refused"] == ""
    assert silent.ended()


@pytest.mark.parametrize("hello, why", [
    ({"host": "gamma"}, "this host's peer is alpha, not 'gamma'"),
    ({"host": "beta"}, "this host's peer is alpha, not 'beta'"),
    ({"host": "x\n" * 500}, "not 'x"),
    ({"fresh": False}, "unknown session"),
    ({"session": 0}, "no session"),
    ({"session": -5}, "no session"),
], ids=named)
@pytest.mark.parametrize("joined", [False, True])
def test_who_does_not_belong_here_is_refused(beta: Host, call: Call, hello: dict[str, Any], why: str,
                                             joined: bool) -> None:
    if joined:
        good = call()
        good.greet(SESSION)
    bad = call()
    answer = bad.greet(**{"session": 4712, **hello})
    assert why in answer["refused"] and len(answer["refused"]) < 200 and answer["host"] == "beta"
    assert bad.ended()
    if joined:
        goes_on(beta, good)
    else:
        until("the reason is shown", lambda: why.splitlines()[0] in beta.link("link0")["reason"])
        assert not beta.events


def test_a_stranger_is_refused(cables: Cables, beta: Host, session: tuple[Speaker, Speaker], call: Call,
                               caplog: pytest.LogCaptureFixture) -> None:
    """Another address on the same cable."""
    run("ip", "-n", cables.namespaces["alpha"], "addr", "add", "169.254.77.9/24", "dev", "link0")
    stranger = call(source="169.254.77.9")
    stranger.say_hello(SESSION)
    assert stranger.ended()
    until("it is told", lambda: "link link0: refused a connection from 169.254.77.9" in caplog.messages)
    for speaker, seq in zip(session, (1, 2), strict=True):
        goes_on(beta, speaker, seq)


def test_another_interface_leads_nowhere(cables: Cables, beta: Host) -> None:
    """The peer's address on the wrong cable: the listener is bound to its own."""
    with cables.inside("alpha"):
        sock = socket.socket()
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"link1\0")
        run("ip", "-n", cables.namespaces["alpha"], "addr", "add", "169.254.77.1/32", "dev", "link1")
        run("ip", "-n", cables.namespaces["alpha"], "route", "add", "169.254.77.2/32", "via", "169.254.78.2", "dev",
            "link1", "onlink")
        sock.settimeout(5)
        with pytest.raises(OSError):
            sock.connect(("169.254.77.2", 7780))


# --- sessions -----------------------------------------------------------------------------------------

def test_the_peer_calls_anew_within_its_session(beta: Host, session: tuple[Speaker, Speaker], call: Call) -> None:
    """It lost link0 and beta has not noticed."""
    goes_on(beta, session[0], 1)
    again = call("link0")
    assert again.greet(SESSION, fresh=False)["refused"] == ""
    assert session[0].ended()
    goes_on(beta, again, 2)
    goes_on(beta, session[1], 3)


def test_a_new_session_ends_the_old_one_that_nobody_missed(beta: Host, session: tuple[Speaker, Speaker],
                                                          call: Call) -> None:
    """alpha lost power and is back before its silence was noticed."""
    goes_on(beta, session[0], 1)
    new = call("link1")
    assert new.greet(SESSION + 1)["refused"] == ""
    assert session[0].ended() and session[1].ended()
    until("the new session is up", lambda: [event for event, *_ in beta.events] == ["up", "down", "up"])
    assert "the peer began a new session" in beta.downs[0]
    assert beta.session() == SESSION + 1
    before = len(beta.received)
    new.say(ACK, 1)  # numbers begin anew
    until("the new session carries messages", lambda: len(beta.received) == before + 1)


def test_a_session_that_is_over_does_not_come_back(beta: Host, session: tuple[Speaker, Speaker], call: Call) -> None:
    """A hello for it may have been under way; what it said twice would be taken twice."""
    goes_on(beta, session[0], 1)
    for speaker in session:
        speaker.close()
    until("the session is over", lambda: beta.downs)
    assert "is over" in call("link1").greet(SESSION)["refused"]
    assert "unknown session" in call("link1").greet(SESSION, fresh=False)["refused"]
    assert call("link1").greet(SESSION + 1)["refused"] == ""


def test_what_still_waits_in_a_dropped_link_is_not_taken_for_the_new_session(
        beta: Host, session: tuple[Speaker, Speaker], call: Call) -> None:
    """Its numbers would fit: messages and acknowledgements of an old session must not count in a new one."""
    release = asyncio.Event()

    async def slow(message: Message) -> None:
        await release.wait()

    beta.on_message = slow
    session[0].say(Message(Type.STATE, 1, 1, 1), 1)
    until("the first message is being handled", lambda: beta.peer._receiver.received == 1)
    beat = Message(Type.BEAT, payload=(BEAT.pack(3, 1, 0, 0, 0, 0),))
    session[0].raw(frame(Message(Type.STATE, 1, 1, 2), 2) + frame(beat) + frame(Message(Type.STATE, 1, 1, 3), 3))
    new = call("link1")
    new.say_hello(SESSION + 1)
    assert new.hello()["refused"] == ""
    until("the new session is up", lambda: beta.events[-1][0] == "up" and len(beta.events) == 3)
    beta.on_message = None
    beta.send(*(Message(Type.STATE, 9, 9, number) for number in range(5)))
    new.say(Message(Type.STATE, 2, 2, 1), 1)
    beta.do(release.set)
    until("both were handled", lambda: len(beta.received) >= 2)
    new.say(Message(Type.STATE, 2, 2, 2), 2)
    until("the new session goes on", lambda: len(beta.received) >= 3)
    assert [(term, epoch) for _, _, term, epoch, _, _ in beta.received] == [(1, 1), (2, 1), (2, 2)]
    assert len(beta.peer._sender._kept) == 5, "nobody of this session has acknowledged anything"


def test_what_came_before_the_drop_but_was_not_read_does_not_count(
        beta: Host, session: tuple[Speaker, Speaker], caplog: pytest.LogCaptureFixture) -> None:
    """The reader has it in its hands only when the connection is over, and perhaps a new session begun."""
    beta.send(*(Message(Type.STATE, 9, 9, number) for number in range(5)))

    def drop_before_it_is_read() -> None:
        session[0].say(Message(Type.BEAT, payload=(BEAT.pack(3, 1, 0, 0, 0, 0),)))
        sock = beta.peer.links[0]._socket
        assert sock is not None
        select.select([sock], [], [], 10)
        beta.peer._drop_all("the test says so")

    beta.do(drop_before_it_is_read)
    assert session[0].ended()
    assert beta.downs == ["no link left (link0: the test says so, link1: the test says so)"]
    assert not any("acknowledges" in said for said in caplog.messages)


def test_a_listener_out_of_descriptors_comes_back(beta: Host, cables: Cables, call: Call) -> None:
    first = call("link0")
    first.greet(SESSION)
    with cables.inside("alpha"):
        sock = socket.socket()
    until("the link is up", lambda: beta.links_up() == ["link0"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno(), limits[1]))
    try:
        sock.connect(("169.254.78.2", 7780))
        until("the fault is shown", lambda: "Too many open files" in beta.link("link1")["reason"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    speaker = Speaker(sock)
    assert speaker.greet(SESSION)["refused"] == ""
    until("both links are up", lambda: beta.links_up() == ["link0", "link1"])
    speaker.close()


# --- as the calling side ------------------------------------------------------------------------------

@pytest.fixture
def exchange(cables: Cables) -> Iterator[Exchange]:
    """Answers in place of beta."""
    made = Exchange(cables)
    yield made
    made.close()


def test_the_called_host_is_another(exchange: Exchange, host: Callable[..., Host],
                                    caplog: pytest.LogCaptureFixture) -> None:
    alpha = host("alpha")
    for _ in range(5):
        speaker = exchange.answer("link0")
        theirs = speaker.hello()
        assert theirs["host"] == "alpha" and theirs["fresh"]
        speaker.say_hello(theirs["session"], host="gamma")
        assert speaker.ended()
    until("the reason is shown", lambda: "this host's peer is beta, not 'gamma'" in alpha.link("link0")["reason"])
    assert not alpha.events
    told = [record for record in caplog.records if "gamma" in record.getMessage()]
    assert len(told) == 1, "told once, however often it is tried"


@pytest.mark.parametrize("data, why", [
    (b"HTTP/1.1 400 Bad Request\r\n" * 4, "not a Holdfast frame"),
    (odd_frame(version=2, kind=1), "the peer speaks wire version 2, this host 1"),
    (frame(ACK), "ACK before the hello"),
    (b"", "the peer closed the connection"),
    (encode_header(ACK, 0, 0)[:30], "the peer closed the connection"),
], ids=named)
def test_the_called_host_does_not_answer_as_it_should(exchange: Exchange, host: Callable[..., Host], data: bytes,
                                                      why: str) -> None:
    alpha = host("alpha")
    speaker = exchange.answer("link0")
    speaker.hello()
    speaker.raw(data)
    speaker.close()
    until("the reason is shown", lambda: why in alpha.link("link0")["reason"])
    honest = exchange.answer("link0")
    honest.say_hello(honest.hello()["session"], host="beta")
    until("the link is up", lambda: alpha.links_up() == ["link0"])
    honest.close()


def test_the_called_host_never_answers(exchange: Exchange, host: Callable[..., Host],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HELLO_TIMEOUT", 0.1)
    alpha = host("alpha")
    assert exchange.answer("link0").ended()
    until("the reason is shown", lambda: "no answer within 0.1 s" in alpha.link("link0")["reason"])


def test_a_caller_whose_session_is_refused_begins_another(exchange: Exchange, host: Callable[..., Host]) -> None:
    alpha = host("alpha")
    first = exchange.answer("link0")
    session = first.hello()["session"]
    first.say_hello(session, host="beta", refused="unknown session")
    assert first.ended()
    until("the reason is shown", lambda: alpha.link("link0")["reason"] == "the peer refused: unknown session")
    second = exchange.answer("link0")
    theirs = second.hello()
    assert theirs["session"] != session and theirs["fresh"]
    second.say_hello(theirs["session"], host="beta")
    until("the link is up", lambda: alpha.links_up() == ["link0"])
    other = exchange.answer("link1")
    while other.hello()["session"] != theirs["session"]:  # the one that was under way
        other.close()
        other = exchange.answer("link1")
    second.close()
    other.close()


def test_an_answer_for_another_session_is_no_answer(exchange: Exchange, host: Callable[..., Host]) -> None:
    alpha = host("alpha")
    speaker = exchange.answer("link0")
    speaker.say_hello(speaker.hello()["session"] + 1, host="beta")
    assert speaker.ended()
    assert not alpha.events


# --- bounded ------------------------------------------------------------------------------------------

def test_a_peer_that_does_not_read_costs_no_more_than_the_window(host: Callable[..., Host], call: Call) -> None:
    window, size = 4 << 20, 300_000
    beta = host("beta", window=window)
    speaker = call()
    speaker.greet(SESSION)
    until("the link is up", lambda: beta.links_up() == ["link0"])
    payload = bytes(size)

    async def pour() -> None:
        while await beta.peer.room():
            beta.peer.send(Message(Type.PAGES, payload=(payload,)))

    pouring = asyncio.run_coroutine_threadsafe(pour(), beta._loop)
    until("the window is full", lambda: not beta.peer._sender.room)

    def loose() -> int:
        sent = 0
        while beta.peer.send_loose(Message(Type.INBOUND, payload=(payload,))):
            sent += 1
            assert sent < 1000, "loose messages are queued without end"
        return sent

    assert beta.do(loose) * size <= link_module.LOOSE_LIMIT
    link = beta.peer.links[0]
    waiting = beta.do(lambda: sum(entry[1].size for entry in link._queue))
    assert beta.peer._sender.kept_bytes <= window + size + HEADER.size
    assert waiting <= window + size + link_module.LOOSE_LIMIT + 1000 * HEADER.size
    assert not pouring.done()
    while speaker.hear()[0].seq < 10:
        pass
    speaker.say(Message(Type.BEAT, payload=(BEAT.pack(10, 1, 0, 0, 0, 0),)))
    until("there is room again", lambda: beta.peer._sender._next > 20)
    until("the socket takes no more", lambda: not beta.do(loose) and link._queue)
    speaker.close()
    pouring.result(15)  # the end of the peer ends the waiting
    until("the session is over", lambda: beta.downs)
    new = call()
    assert new.greet(SESSION + 1)["refused"] == ""
    until("a new session begins", lambda: beta.links_up() == ["link0"])
    beta.send(Message(Type.ACK, 1, 2, 3))
    headers = [new.hear()[0]]
    while headers[-1].type is Type.BEAT:
        headers.append(new.hear()[0])
    assert (headers[-1].type, headers[-1].seq) == (Type.ACK, 1), "nothing of the old session comes over the new one"


def test_what_is_not_handled_yet_waits_at_the_sender(beta: Host, session: tuple[Speaker, Speaker]) -> None:
    """A slow receiver holds one message, and what the socket holds."""
    release = asyncio.Event()

    async def slow(message: Message) -> None:
        await release.wait()

    beta.on_message = slow
    speaker = session[0]
    speaker.socket.setblocking(False)
    data, sent, deadline = frame(Message(Type.PAGES, payload=(bytes(1 << 20),)), 1), 0, time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            sent += speaker.socket.send(data[sent % len(data):])
            deadline = time.monotonic() + 0.3
        except BlockingIOError:
            pass
    assert sent < 40 << 20
    beta.do(release.set)


def test_a_silent_peer_is_dropped(host: Callable[..., Host], call: Call) -> None:
    """It keeps its connections open and says nothing."""
    beta = host("beta", QUICK)
    speakers = call("link0"), call("link1")
    for speaker in speakers:
        speaker.greet(SESSION)
    both_up(beta)
    assert speakers[0].ended() and speakers[1].ended()
    until("the peer is down", lambda: beta.downs)
    assert "silent for" in beta.downs[0]


def test_who_has_not_said_hello_speaks_for_nobody(host: Callable[..., Host], call: Call,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that dribbles on must not make the connection that is up look alive."""
    monkeypatch.setattr(link_module, "HELLO_TIMEOUT", 60)
    beta = host("beta", QUICK)
    speaker = call()
    speaker.greet(SESSION)
    until("the link is up", lambda: beta.links_up() == ["link0"])
    dribble = iter(frame(Message(Type.HELLO, payload=(b"{}",))))
    other = call()

    def dropped() -> bool:
        other.raw(bytes([next(dribble, 0)]))
        return bool(beta.downs)

    until("the silence is noticed all the same", dropped)
    assert "silent for" in beta.downs[0]
