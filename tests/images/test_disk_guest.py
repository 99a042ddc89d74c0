# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk image, booted: what it acknowledged is on its disk after its power has failed, and its checks can fail."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance.lab import soundness
from appliance.lab.ledger import Audit, Ledger
from appliance.lab.postgres import Postgres
from appliance.lab.streams import WrongAnswer
from appliance.lab.transfers import Bank
from tests.images.conftest import DISK_IMAGE, Guest, inside

pytestmark = pytest.mark.slow

CHECKS, HTTP, POSTGRES, REDIS = 10, 80, 5432, 6379
Boot = Callable[[Path], contextlib.AbstractContextManager[Guest]]


@pytest.fixture
def disk(disk_manifest: dict[str, Any], tmp_path: Path) -> Path:
    copy = tmp_path / "disk.img"
    subprocess.run(["cp", "--sparse=always", DISK_IMAGE / "disk.img", copy], check=True, timeout=60)
    return copy


def check(guest: Guest, line: str) -> tuple[int, str]:
    """Runs a check in the guest: its exit status and what it printed."""
    with guest.connect(CHECKS) as connection:
        connection.settimeout(60)
        connection.sendall(f"{line}\n".encode())
        said = b"".join(iter(lambda: connection.recv(65536), b"")).decode()
    printed, _, status = said.removesuffix("\n").rpartition("exit ")
    return int(status), printed


def database(guest: Guest) -> Postgres:
    with inside(guest.namespace):
        return Postgres((guest.ip, POSTGRES))


def test_what_was_acknowledged_outlives_a_loss_of_power(disk_boot: Boot, disk: Path) -> None:
    with disk_boot(disk) as guest:
        session = database(guest)
        assert session.query("SHOW data_checksums") == [("on",)]
        assert session.query("CREATE TABLE kept (id int PRIMARY KEY, word text)") == []
        session.query("INSERT INTO kept VALUES (1, 'one'), (2, NULL)")
        session.query("BEGIN; INSERT INTO kept VALUES (3, 'never committed')")
        assert guest.ask(REDIS, "SET key value") == "+OK"
        with pytest.raises(WrongAnswer, match="42P01.*no_such_table"):
            database(guest).query("SELECT * FROM no_such_table")
    with disk_boot(disk) as guest:
        session = database(guest)
        assert session.query("SELECT id, word FROM kept ORDER BY id") == [("1", "one"), ("2", None)]
        assert session.query("SELECT bt_index_check('kept_pkey', true)") == [("",)]
        assert guest.ask(REDIS, "GET key") == "$5"
        assert check(guest, "filesystem") == (0, "mounted rw,noatime\nerrors 0\n")
        status, said = check(guest, "checksums")
        assert status == 0 and "Bad checksums:  0" in said
        assert database(guest).query("SELECT count(*) FROM kept") == [("2",)]


def test_a_broken_page_is_found(disk_boot: Boot, disk: Path) -> None:
    """One changed byte of a table on the disk: what the checks are for."""
    with disk_boot(disk) as guest:
        session = database(guest)
        session.query("CREATE TABLE struck AS SELECT 'a word to be found on the disk'::text AS word")
        session.query("CHECKPOINT")
    data = disk.read_bytes()
    places = [at for at in range(0, len(data), 8192) if b"a word to be found on the disk" in data[at : at + 8192]]
    with disk.open("r+b") as file:
        for at in places:  # the table, and the log's full page, which is not read again
            file.seek(data.index(b"a word to be found", at))
            file.write(b"A")
    with disk_boot(disk) as guest:
        status, said = check(guest, "checksums")
        assert status != 0 and "Bad checksums:  1" in said


def test_the_checks_of_a_running_guest(disk_boot: Boot, disk: Path, tmp_path: Path) -> None:
    with disk_boot(disk) as guest:
        frozen_is_clean_on_the_disk(guest, disk)
        fio_measures_and_nothing_else_is_run(guest)
        an_index_that_lacks_a_row_is_found(guest)
        what_the_bank_lost_is_found(guest, tmp_path / "ledger")


def frozen_is_clean_on_the_disk(guest: Guest, disk: Path) -> None:
    session = database(guest)
    session.query("CREATE TABLE flow AS SELECT generate_series(1, 5000) AS n")
    with guest.connect(CHECKS) as connection, connection.makefile("rb") as said:
        connection.sendall(b"freeze\n")
        assert said.readline() == b"frozen\n"
        judged = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, timeout=60)
        assert judged.returncode == 0, judged.stdout
        connection.sendall(b"thaw\n")
        assert said.readline() == b"exit 0\n"
    session.query("INSERT INTO flow VALUES (0)")  # it may write again
    with guest.connect(HTTP) as connection:
        connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
        assert b"holdfast guest" in b"".join(iter(lambda: connection.recv(65536), b""))


def fio_measures_and_nothing_else_is_run(guest: Guest) -> None:
    status, said = check(guest, "fio rw=randwrite bs=4k size=8M direct=1 runtime=1")
    assert status == 0 and json.loads(said)["jobs"][0]["write"]["iops"] > 0
    assert check(guest, "forget") == (0, "")
    assert check(guest, "nothing")[0] == 127
    assert check(guest, "../database stop")[0] == 127
    assert check(guest, "fio $(reboot)")[0] == 64
    assert check(guest, "..")[0] == 127
    assert database(guest).query("SELECT 1") == [("1",)]


def an_index_that_lacks_a_row_is_found(guest: Guest) -> None:
    session = database(guest)
    assert soundness.check(session).problems == []
    session.query("CREATE TABLE torn (id int PRIMARY KEY)")
    ready = "UPDATE pg_index SET indisready = {} WHERE indexrelid = 'torn_pkey'::regclass"
    for step in (ready.format("false"), "INSERT INTO torn VALUES (1)", ready.format("true")):
        session.query(step)
    assert soundness.check(session, "other").problems == []
    [problem] = soundness.check(session, "torn").problems
    assert "torn_pkey" in problem and "lacks matching index tuple" in problem
    session.query("REINDEX TABLE torn")
    assert soundness.check(session).problems == []


def what_the_bank_lost_is_found(guest: Guest, path: Path) -> None:
    session, bank, ledger = database(guest), Bank("bank"), Ledger(path)
    bank.create(session)
    for number in range(1, 6):
        bank.transfer(session, 0, number)
        ledger.acknowledged(0, number)
    audit = Audit(path)
    found = bank.audit(session, audit)
    assert (found.transactions, found.problems) == (5, [])
    session.query("DELETE FROM bank_history WHERE number = 3")
    found = bank.audit(session, audit)
    assert (found.lost, found.wrong) == (1, 1)  # and the money no longer adds up
    assert any("0/3" in problem for problem in found.problems)
