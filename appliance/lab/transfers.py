# SPDX-License-Identifier: GPL-2.0-or-later
"""A bank in PostgreSQL: clients that move money without pause, each acknowledgement in a ledger outside.

Like pgbench: a transaction changes the balance of an account and writes a line of history, and commits.
"""

from __future__ import annotations

import contextlib

from appliance.lab.ledger import ACCOUNTS, Audit, Findings, Ledger, Row, order
from appliance.lab.postgres import Postgres
from appliance.lab.streams import Stream, WrongAnswer


class Bank:
    """The tables of one run. `name`: small letters, digits and _."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.accounts, self.history = f"{name}_accounts", f"{name}_history"

    def create(self, session: Postgres) -> None:
        """Make the tables. Raises OSError, WrongAnswer."""
        session.query(
            f"CREATE TABLE {self.accounts} (id int PRIMARY KEY, balance bigint NOT NULL, filler char(80));"
            f"CREATE TABLE {self.history} (client int, number int, account int NOT NULL, amount int NOT NULL,"
            f" at timestamptz DEFAULT clock_timestamp(), PRIMARY KEY (client, number));"
            f"CREATE INDEX ON {self.history} (account);"
            f"INSERT INTO {self.accounts} SELECT id, 0, 'account ' || id FROM generate_series(1, {ACCOUNTS}) AS id"
        )

    def transfer(self, session: Postgres, client: int, number: int) -> None:
        """One transaction, committed when this returns. Raises OSError, WrongAnswer."""
        account, amount = order(client, number)
        session.query(f"BEGIN; UPDATE {self.accounts} SET balance = balance + {amount} WHERE id = {account}")
        session.query(f"INSERT INTO {self.history} VALUES ({client}, {number}, {account}, {amount}); COMMIT")

    def audit(self, session: Postgres, audit: Audit) -> Findings:
        """Is every acknowledged transaction there, exactly once, and does the money add up? Raises OSError,
        WrongAnswer. Clients may go on meanwhile."""
        audit.read()
        expected = audit.expected()
        session.query("BEGIN ISOLATION LEVEL REPEATABLE READ")
        try:
            # By the table itself, not by an index that may disagree with it.
            rows = session.query(
                f"SET LOCAL enable_indexscan = off; SET LOCAL enable_indexonlyscan = off;"
                f"SET LOCAL enable_bitmapscan = off; SELECT client, number, account, amount FROM {self.history}"
            )
            unequal = session.query(
                f"SELECT a.id, a.balance, coalesce(h.sum, 0) FROM {self.accounts} a LEFT JOIN (SELECT account,"
                f" sum(amount) FROM {self.history} GROUP BY account) h ON h.account = a.id"
                f" WHERE a.balance <> coalesce(h.sum, 0) ORDER BY a.id"
            )
        finally:
            with contextlib.suppress(OSError, WrongAnswer):
                session.query("ROLLBACK")
        audit.read()
        findings = audit.judge(expected, [_numbers(row) for row in rows])
        for account, balance, total in unequal:
            findings.wrong += 1
            findings.found(f"account {account} has {balance}, its history adds up to {total}")
        return findings


def _numbers(row: tuple[str | None, ...]) -> Row:
    client, number, account, amount = (int(value or 0) for value in row)
    return client, number, account, amount


class Transfer(Stream):
    """One client of the bank over one session kept open."""

    def __init__(self, address: tuple[str, int], bank: Bank, client: int, ledger: Ledger) -> None:
        self.name = f"transfer{client}"
        super().__init__(address)
        self._bank, self._client, self._ledger = bank, client, ledger
        self._session: Postgres | None = None
        self.done = 0

    def connect(self) -> None:
        self.close()
        self._session = Postgres(self.address)

    def operate(self) -> None:
        if self._session is None:
            raise ConnectionError("not connected")
        number = self.done + 1
        try:
            self._bank.transfer(self._session, self._client, number)
        except BaseException:
            self.done = number  # never tried again: it may have been carried out
            self._ledger.unanswered(self._client, number)
            self.close()  # and with it whatever is left of the transaction
            raise
        self._ledger.acknowledged(self._client, number)
        self.done = number

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
