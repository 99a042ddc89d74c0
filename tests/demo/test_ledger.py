# SPDX-License-Identifier: GPL-2.0-or-later
"""The audit of a database against the ledger: each broken promise is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.lab.ledger import ACCOUNTS, Audit, Findings, Ledger, Row, order


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(path)


def row(client: int, number: int) -> Row:
    return (client, number, *order(client, number))


def judged(path: Path, *rows: Row) -> Findings:
    audit = Audit(path)
    audit.read()
    return audit.judge(audit.expected(), rows)


def test_what_was_acknowledged_is_there(ledger: Ledger, path: Path) -> None:
    for number in (1, 2):
        ledger.acknowledged(0, number)
    ledger.acknowledged(7, 1)
    found = judged(path, row(0, 1), row(0, 2), row(7, 1))
    assert (found.transactions, found.lost, found.twice, found.wrong, found.problems) == (3, 0, 0, 0, [])


def test_a_lost_one_is_named(ledger: Ledger, path: Path) -> None:
    ledger.acknowledged(0, 1)
    ledger.acknowledged(0, 2)
    found = judged(path, row(0, 2))
    assert found.lost == 1 and "0/1 was acknowledged and is not there" in found.problems[0]


def test_one_that_is_there_twice(ledger: Ledger, path: Path) -> None:
    ledger.acknowledged(0, 1)
    found = judged(path, row(0, 1), row(0, 1))
    assert found.twice == 1 and found.lost == 0


def test_one_that_is_not_as_it_was_ordered(ledger: Ledger, path: Path) -> None:
    ledger.acknowledged(0, 1)
    account, amount = order(0, 1)
    found = judged(path, (0, 1, account, amount + 1))
    assert found.wrong == 1 and found.lost == 0


def test_one_without_an_answer_may_be_there_or_not_and_then_keeps_to_it(ledger: Ledger, path: Path) -> None:
    ledger.unanswered(0, 1)
    ledger.acknowledged(0, 2)
    audit = Audit(path)
    audit.read()
    assert audit.judge(audit.expected(), [row(0, 2)]).problems == []
    assert audit.judge(audit.expected(), [row(0, 1), row(0, 2)]).problems == []
    assert audit.judge(audit.expected(), [row(0, 2)]).lost == 1
    assert audit.acknowledged == 1


def test_the_one_under_way_may_be_there_and_no_later_one(ledger: Ledger, path: Path) -> None:
    ledger.acknowledged(0, 1)
    assert judged(path, row(0, 1), row(0, 2)).problems == []
    assert judged(path, row(0, 1), row(0, 3)).wrong == 1
    assert judged(path, row(0, 1), row(5, 2)).wrong == 1


def test_what_is_acknowledged_while_the_rows_are_read_is_no_fault(ledger: Ledger, path: Path) -> None:
    ledger.acknowledged(0, 1)
    audit = Audit(path)
    audit.read()
    expected = audit.expected()
    for number in (2, 3):
        ledger.acknowledged(0, number)
    audit.read()
    assert audit.judge(expected, [row(0, 1), row(0, 2)]).problems == []  # the third came after the rows
    assert audit.judge(audit.expected(), [row(0, 1), row(0, 2)]).lost == 1


def test_a_line_that_is_not_whole_yet_waits(ledger: Ledger, path: Path) -> None:
    ledger.acknowledged(0, 1)
    with path.open("ab") as file:
        file.write(b"+ 0")
    audit = Audit(path)
    audit.read()
    assert audit.acknowledged == 1
    with path.open("ab") as file:
        file.write(b" 2\n")
    audit.read()
    assert audit.acknowledged == 2


@pytest.mark.parametrize("line", ["+ 0 2\n", "- 0 1\n", "+ 0\n", "+ 0 one\n"])
def test_a_ledger_with_gaps_is_none(path: Path, line: str) -> None:
    path.write_text(line)
    with pytest.raises(ValueError):
        Audit(path).read()


@given(st.integers(0, 1000), st.integers(1, 1 << 30))
def test_every_order_is_of_an_account_that_exists(client: int, number: int) -> None:
    account, amount = order(client, number)
    assert 1 <= account <= ACCOUNTS and -10000 <= amount <= 10000
    assert order(client, number) == (account, amount)
