# SPDX-License-Identifier: GPL-2.0-or-later
"""The witness: what it granted it never forgets, and who has no key gets no word."""

from __future__ import annotations

import asyncio
import hmac
import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.arbiter import key
from appliance.arbiter.arbiter import make
from appliance.arbiter.datagram import LONGEST, MAGIC, Put, Question, Reply, address, peek, seal, unseal
from appliance.arbiter.grants import Record
from appliance.arbiter.settings import Arbiter as Settings
from appliance.arbiter.shelf import MOST, Shelf
from appliance.arbiter.witness_client import WitnessRegister
from appliance.errors import BadData, HoldfastError, NoPermission, Unavailable
from appliance.exits import Exit
from tests.arbiter.conftest import PAIR, WitnessProcess

KEY = b"k" * 32


def register(witness: WitnessProcess, *, key_file: Path | None = None, timeout: float = 2.0) -> WitnessRegister:
    return WitnessRegister(witness.address, PAIR, key_file or witness.key, timeout)


def question(put: Put | None = None, *, pair: str = PAIR, vm: str = "web1") -> Question:
    return Question(secrets.token_hex(16), pair, vm, put)


def ask(witness: WitnessProcess, datagram: bytes, seconds: float = 2.0) -> bytes | None:
    """The answer to a datagram, None for none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(witness.address)
        sock.settimeout(seconds)
        sock.send(datagram)
        try:
            return sock.recv(4096)
        except TimeoutError:
            return None


# --- memory -----------------------------------------------------------------------------------------

def test_a_grant_outlives_the_witness(witness: WitnessProcess) -> None:
    assert asyncio.run(register(witness).swap("web1", 0, Record(7, "alpha")))
    witness.kill()
    witness.start()
    assert asyncio.run(register(witness).read("web1")) == (1, Record(7, "alpha"))
    assert witness.terminate() == 0


def test_no_term_is_granted_twice_over_restarts(witness: WitnessProcess) -> None:
    """Killed at any moment, four times, while both hosts ask for each term at once."""
    holders: dict[int, set[str]] = {}

    async def asks(host: str, peer: str, until: asyncio.Event) -> None:
        settings = Settings(kind="witness", address=f"127.0.0.1:{witness.port}", key_file=witness.key, timeout=0.2)
        arbiter = make(settings, host, peer)
        while not until.is_set():
            term = max(holders, default=0) + 1
            if (await arbiter.ask("web1", term)).granted:
                holders.setdefault(term, set()).add(host)

    async def scene() -> None:
        until = asyncio.Event()
        hosts = [asyncio.ensure_future(asks(*names, until)) for names in (("alpha", "beta"), ("beta", "alpha"))]
        for _ in range(4):
            before = len(holders)
            async with asyncio.timeout(20):
                while len(holders) < before + 20:
                    await asyncio.wait(hosts, timeout=0.005)
            witness.kill()
            await asyncio.to_thread(witness.start)
        until.set()
        await asyncio.gather(*hosts)

    asyncio.run(scene())
    assert len(holders) >= 80 and all(len(hosts) == 1 for hosts in holders.values()), holders
    _, record = asyncio.run(register(witness).read("web1"))
    assert record.term >= max(holders)


def test_it_waits_for_a_witness_that_is_about_to_return(witness: WitnessProcess) -> None:
    """A question is asked again until the time is up."""
    witness.kill()

    async def scene() -> tuple[int, Record]:
        asked = asyncio.ensure_future(register(witness, timeout=10.0).read("web1"))
        await asyncio.to_thread(witness.start)
        return await asked

    assert asyncio.run(scene()) == (0, Record())


def test_a_full_disk_grants_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in shelf.put(PAIR, "web1", 0, Record(2, "alpha"))
    assert shelf.get(PAIR, "web1") == (0, Record())
    monkeypatch.undo()
    assert shelf.put(PAIR, "web1", 0, Record(3, "beta")) == ""
    shelf.close()
    assert Shelf(tmp_path).get(PAIR, "web1") == (1, Record(3, "beta"))


def test_it_never_goes_back(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    assert shelf.put(PAIR, "web1", 0, Record(5, "alpha")) == ""
    assert "another version" in shelf.put(PAIR, "web1", 0, Record(6, "beta"))
    assert "below" in shelf.put(PAIR, "web1", 1, Record(4, "beta"))
    assert shelf.get(PAIR, "web1") == (1, Record(5, "alpha"))


def test_it_keeps_so_many_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.arbiter.shelf.MOST", 2)
    shelf = Shelf(tmp_path)
    assert [bool(shelf.put(PAIR, f"web{number}", 0, Record(1, "alpha"))) for number in range(3)] == [0, 0, 1]
    assert shelf.put(PAIR, "web1", 1, Record(2, "alpha")) == "" and MOST > 1000


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b'{"pair":"a","vm":"b"}', b"\xff",
                                     b'{"pair":"other","vm":"web1","version":1,"record":{"term":1,"host":"a"}}'])
def test_a_grant_that_cannot_be_read_stops_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PAIR).mkdir()
    (tmp_path / PAIR / "web1.json").write_bytes(content)
    with pytest.raises(HoldfastError, match="cannot be read") as caught:
        Shelf(tmp_path)
    assert "two hosts speak" in caught.value.hint


def test_a_place_that_cannot_be_used(witness: WitnessProcess) -> None:
    witness.terminate()
    for place, cause in ((witness.key, "exists"), (witness.key / "below", "directory")):
        command = [*witness.command(), "--state-dir", str(place)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        assert done.returncode == Exit.DEGRADED and cause in done.stderr and "--state-dir" in done.stderr, done.stderr


def test_an_address_that_is_taken(witness: WitnessProcess, tmp_path: Path) -> None:
    command = [*witness.command(), "--state-dir", str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == Exit.DEGRADED, done.stderr
    assert "free port" in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_one_witness_at_a_time(witness: WitnessProcess) -> None:
    second = subprocess.run(witness.command(), capture_output=True, text=True, timeout=20)
    assert second.returncode == Exit.DEGRADED and "another witness uses" in second.stderr


# --- keys ---------------------------------------------------------------------------------------------

def test_who_has_another_key_gets_no_word(witness: WitnessProcess, tmp_path: Path) -> None:
    other = tmp_path / "other"
    key.make(other)
    with pytest.raises(Unavailable, match="no answer") as caught:
        asyncio.run(register(witness, key_file=other, timeout=0.3).read("web1"))
    assert "key of pair" in caught.value.hint
    assert asyncio.run(register(witness).read("web1")) == (0, Record())


def test_the_log_says_who_got_no_answer(witness: WitnessProcess) -> None:
    """Once for many."""
    for _ in range(5):
        ask(witness, seal(question(), KEY), 0.05)
    asyncio.run(register(witness).read("web1"))
    log = (witness.place / "log").read_text()
    assert log.count("gets no answer") == 1 and "sealed with another key" in log, log


def test_a_stranger_writes_no_line_of_its_own_into_the_log(witness: WitnessProcess) -> None:
    ask(witness, MAGIC + bytes(32) + b'{"\\nforged": 1}', 0.1)
    log = (witness.place / "log").read_text()
    assert "forged" in log and "\nforged" not in log, log


def test_a_key_that_others_can_read_is_told(witness: WitnessProcess) -> None:
    client = register(witness, timeout=0.2)
    witness.terminate()
    witness.key.chmod(0o644)
    witness.start()
    log = (witness.place / "log").read_text()
    assert f"the key {witness.key} is readable for others; chmod 600 {witness.key}" in log
    with pytest.raises(Unavailable, match="no answer"):
        asyncio.run(client.read("web1"))


def test_a_witness_without_keys_does_not_start(witness: WitnessProcess, tmp_path: Path) -> None:
    command = [*witness.command(), "--keys", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == Exit.DEGRADED and "--make-key" in done.stderr and "Traceback" not in done.stderr


def test_a_pair_cannot_speak_for_another(witness: WitnessProcess) -> None:
    key.make(witness.keys / "other.key")
    secret = key.load(witness.keys / "other.key")
    assert ask(witness, seal(question(Put(0, Record(9, "x"))), secret), 0.3) is None
    answer = ask(witness, seal(question(pair="other"), secret))
    assert answer is not None and unseal(answer, Reply, secret).record == Record()


def test_a_question_that_was_overheard_is_of_no_use(witness: WitnessProcess) -> None:
    secret = key.load(witness.key)
    put = seal(question(Put(0, Record(5, "alpha"))), secret)
    first = unseal(ask(witness, put) or b"", Reply, secret)
    assert first.done
    assert asyncio.run(register(witness).swap("web1", 1, Record(6, "beta")))
    again = unseal(ask(witness, put) or b"", Reply, secret)
    assert not again.done and again.record == Record(6, "beta")


def test_an_answer_that_was_overheard_is_of_no_use(tmp_path: Path) -> None:
    """One to another question, and one from who has no key, come before the true one."""
    file = tmp_path / "key"
    key.make(file)
    secret = key.load(file)

    class Replayed(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            asked = unseal(data, Question, secret)
            for nonce, seal_key, term in (("0" * 32, secret, 1), (asked.nonce, KEY, 2), (asked.nonce, secret, 3)):
                self.transport.sendto(seal(Reply(nonce, term, Record(term, "alpha")), seal_key), addr)

    async def scene() -> tuple[int, Record]:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Replayed, local_addr=("127.0.0.1", 0))
        try:
            port = transport.get_extra_info("sockname")[1]
            return await WitnessRegister(("127.0.0.1", port), PAIR, file, 2.0).read("web1")
        finally:
            transport.close()

    assert asyncio.run(scene()) == (3, Record(3, "alpha"))


def test_a_question_does_not_pass_for_an_answer() -> None:
    sealed = seal(question(), KEY)
    with pytest.raises(BadData, match="another key"):
        unseal(sealed, Reply, KEY)
    assert unseal(sealed, Question, KEY).vm == "web1"


def test_keys_are_kept_close(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "key"
    key.make(file)
    assert file.stat().st_mode & 0o777 == 0o600 and len(key.load(file)) == 64
    with pytest.raises(Unavailable, match="already"):
        key.make(file)
    file.chmod(0o644)
    with pytest.raises(Unavailable, match="readable for others"):
        key.load(file)
    file.chmod(0o600)
    file.write_bytes(b"short")
    with pytest.raises(Unavailable, match="5 bytes"):
        key.load(file)
    with pytest.raises((Unavailable, NoPermission)):
        key.load(tmp_path / "none")


# --- strangers ------------------------------------------------------------------------------------------

@given(st.binary(max_size=1500))
def test_whatever_arrives(data: bytes) -> None:
    with pytest.raises(BadData):
        peek(data)
    with pytest.raises(BadData):
        unseal(data, Question, KEY)


@pytest.mark.parametrize("pair", ["../etc", "a/b", "", "a" * 200, "A", "\x00"])
def test_a_name_is_no_path(witness: WitnessProcess, pair: str) -> None:
    assert ask(witness, seal(question(pair=pair), key.load(witness.key)), 0.2) is None
    assert ask(witness, seal(question(vm=pair), key.load(witness.key)), 0.2) is None


def test_what_is_too_long_is_not_read(witness: WitnessProcess) -> None:
    secret = key.load(witness.key)
    for length, answered in ((LONGEST, True), (LONGEST + 1, False)):
        body = msgspec.json.encode(question()).ljust(length - len(MAGIC) - 32)
        datagram = MAGIC + hmac.digest(secret + b" question", body, "sha256") + body
        assert len(datagram) == length and (ask(witness, datagram, 0.5) is not None) is answered


def test_a_flood_does_not_keep_a_host_from_its_answer(witness: WitnessProcess) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(witness.address)
        for number in range(3000):
            sock.send(os.urandom(number % LONGEST))
    assert asyncio.run(register(witness).swap("web1", 0, Record(2, "alpha")))


@pytest.mark.parametrize(("text", "expected"), [
    ("192.0.2.5:99", ("192.0.2.5", 99)), ("192.0.2.5", ("192.0.2.5", 7790)), ("[fd00::5]:99", ("fd00::5", 99)),
    ("fd00::5", ("fd00::5", 7790)), ("witness.example", ("witness.example", 7790)), ("[fd00::5]", ("fd00::5", 7790)),
])  # fmt: skip
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address(text) == expected


@pytest.mark.parametrize("text", ["", ":99", "a:0", "a:70000", "a:b"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(BadData, match="HOST:PORT"):
        address(text)
