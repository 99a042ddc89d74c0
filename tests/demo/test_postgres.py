# SPDX-License-Identifier: GPL-2.0-or-later
"""The PostgreSQL client and the bank's clients, against a server that says exactly what the test wants."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.lab.ledger import Ledger
from appliance.lab.postgres import Postgres
from appliance.lab.streams import Ended, WrongAnswer
from appliance.lab.transfers import Bank, Transfer

READY = b"Z\0\0\0\5I"
WELCOME = b"R\0\0\0\x08\0\0\0\0" + READY


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", 4 + len(body)) + body


def row(*values: bytes | None) -> bytes:
    fields = [struct.pack(">i", -1) if value is None else struct.pack(">i", len(value)) + value for value in values]
    return message(b"D", struct.pack(">H", len(values)) + b"".join(fields))


def error(severity: bytes, code: bytes, text: bytes) -> bytes:
    return message(b"E", b"S%s\0C%s\0M%s\0\0" % (severity, code, text))


class Scripted:
    """Takes one connection after another; answers each message with what comes next, and hangs up where that is b""."""

    def __init__(self, *answers: bytes) -> None:
        self.heard: list[bytes] = []
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self._answers:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                while self._answers and (heard := connection.recv(65536)):
                    self.heard.append(heard)
                    if not (answer := self._answers.pop(0)):
                        break
                    connection.sendall(answer)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def scripted() -> Iterator[Callable[..., Scripted]]:
    made: list[Scripted] = []

    def make(*answers: bytes) -> Scripted:
        made.append(Scripted(*answers))
        return made[-1]

    yield make
    for server in made:
        server.close()


def test_rows_of_several_statements_come_as_text(scripted: Callable[..., Scripted]) -> None:
    notice = message(b"N", b"SNOTICE\0\0") + message(b"T", b"\0\0") + message(b"C", b"SELECT 1\0") + message(b"I", b"")
    rows = row(b"1", None) + notice + row(b"", "\u00e4".encode())
    server = scripted(message(b"S", b"x\0y\0") + WELCOME, rows + READY)
    session = Postgres(server.address, database="shop")
    assert session.query("SELECT 1; SELECT 2") == [("1", None), ("", "\u00e4")]
    assert server.heard[0][4:8] == b"\0\3\0\0" and b"user\0postgres\0database\0shop\0\0" in server.heard[0]
    assert server.heard[1] == b"Q\0\0\0\x17SELECT 1; SELECT 2\0"
    session.close()


def test_an_error_is_told_and_the_session_goes_on(scripted: Callable[..., Scripted]) -> None:
    server = scripted(WELCOME, error(b"ERROR", b"23505", b"there already") + READY, row(b"7") + READY)
    session = Postgres(server.address)
    with pytest.raises(WrongAnswer, match="23505 there already"):
        session.query("INSERT")
    assert session.query("SELECT 7") == [("7",)]
    session.close()


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (message(b"R", b"\0\0\0\5salt"), "password"),
        (error(b"FATAL", b"57P03", b"the database system is starting up"), "57P03"),
        (b"H\0\0\0\4", "said"),
        (b"D\0\0\0\1", "1 bytes"),
        (b"D\x7f\xff\xff\xff", "bytes"),
    ],
)
def test_a_server_that_makes_no_sense(scripted: Callable[..., Scripted], said: bytes, match: str) -> None:
    with pytest.raises(WrongAnswer, match=match):
        Postgres(scripted(said).address)


def test_a_server_that_hangs_up(scripted: Callable[..., Scripted]) -> None:
    session = Postgres(scripted(WELCOME, b"D\0\0\0\x10half").address)
    with pytest.raises(Ended):
        session.query("SELECT")
    session.close()


def transfer(server: Scripted, path: Path) -> Transfer:
    found = Transfer(server.address, Bank("bank"), 3, Ledger(path))
    found.connect()
    return found


def test_a_committed_transfer_is_in_the_ledger(scripted: Callable[..., Scripted], tmp_path: Path) -> None:
    server = scripted(WELCOME, READY, READY, READY, READY)
    client = transfer(server, tmp_path / "ledger")
    client.operate()
    client.operate()
    client.close()
    assert (tmp_path / "ledger").read_text() == "+ 3 1\n+ 3 2\n" and client.done == 2
    assert b"BEGIN; UPDATE bank_accounts" in server.heard[1]
    assert b"INSERT INTO bank_history VALUES (3, 1," in server.heard[2] and server.heard[2].endswith(b"; COMMIT\0")


@pytest.mark.parametrize("end", [b"", error(b"ERROR", b"40001", b"again") + READY])
def test_one_without_an_answer_is_not_tried_again(
    scripted: Callable[..., Scripted], tmp_path: Path, end: bytes
) -> None:
    server = scripted(WELCOME, READY, end, WELCOME, READY, READY)
    client = transfer(server, tmp_path / "ledger")
    with pytest.raises((OSError, WrongAnswer)):
        client.operate()
    with pytest.raises(ConnectionError):
        client.operate()
    client.connect()
    client.operate()
    client.close()
    assert (tmp_path / "ledger").read_text() == "? 3 1\n+ 3 2\n"
