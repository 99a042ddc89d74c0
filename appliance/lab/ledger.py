# SPDX-License-Identifier: GPL-2.0-or-later
"""The ledger: what a database acknowledged, written down outside of it, and the audit of the database against it.

Pure but for the file. Clients are numbered, and each numbers its transactions from 1 without a gap. The ledger
has a line for each acknowledgement, and one for each transaction whose answer never came:

    + CLIENT NUMBER
    ? CLIENT NUMBER

The rule: an acknowledged transaction is there, exactly once and as it was ordered. One without an answer is there
once or not at all. Nothing else is there but the one that each client has under way.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ACCOUNTS = 500
LISTED = 10  # findings told one by one; the rest is counted

Row = tuple[int, int, int, int]
"""A transaction as the database has it: client, number, account, amount."""


def order(client: int, number: int) -> tuple[int, int]:
    """What a transaction is to do: account (from 1) and amount. Derived from its numbers, so that any mix-up shows."""
    drawn = hashlib.blake2b(f"{client}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn[:4], "big") % ACCOUNTS + 1, int.from_bytes(drawn[4:], "big") % 20001 - 10000


class Ledger:
    """Appends to the file; several threads may."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._lock = threading.Lock()

    def acknowledged(self, client: int, number: int) -> None:
        self._write(f"+ {client} {number}\n")

    def unanswered(self, client: int, number: int) -> None:
        self._write(f"? {client} {number}\n")

    def _write(self, line: str) -> None:
        with self._lock:
            self._file.write(line.encode())

    def close(self) -> None:
        self._file.close()


@dataclass
class _Client:
    """What is known of one client: `last`: its highest number in the ledger; `unanswered`: of unknown fate."""

    last: int = 0
    acknowledged: int = 0
    unanswered: set[int] = field(default_factory=set)


@dataclass
class Findings:
    """What an audit found. `problems` in words, bounded; empty when nothing is wrong."""

    transactions: int = 0
    lost: int = 0
    twice: int = 0
    wrong: int = 0
    problems: list[str] = field(default_factory=list)

    def found(self, what: str) -> None:
        if len(self.problems) < LISTED:
            self.problems.append(what)


class Audit:
    """Reads the ledger as it grows, and judges rows against it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._clients: dict[int, _Client] = {}

    @property
    def acknowledged(self) -> int:
        """Transactions acknowledged up to the last `read`."""
        return sum(client.acknowledged for client in self._clients.values())

    def read(self) -> None:
        """Take in what was written since. Raises OSError, and ValueError for a ledger that is none."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            fresh = file.read()
        fresh = fresh[: fresh.rfind(b"\n") + 1]
        self._read += len(fresh)
        for line in fresh.decode("ascii").splitlines():
            sign, client, number = line.split(" ")
            self._enter(sign, int(client), int(number))

    def _enter(self, sign: str, client: int, number: int) -> None:
        of = self._clients.setdefault(client, _Client())
        if number != of.last + 1 or sign not in ("+", "?"):
            raise ValueError(f"the ledger has {sign} {client} {number} after {of.last}")
        of.last = number
        if sign == "+":
            of.acknowledged += 1
        else:
            of.unanswered.add(number)

    def expected(self) -> dict[int, set[int]]:
        """The numbers that must be there, by client: all acknowledged up to the last `read`."""
        return {name: set(range(1, of.last + 1)) - of.unanswered for name, of in self._clients.items()}

    def judge(self, expected: dict[int, set[int]], rows: Iterable[Row]) -> Findings:
        """Compare `rows`, all that the database has, with `expected`, which is from before they were asked for.

        Call `read` between the asking and this: what was acknowledged meanwhile may be there. Each transaction of
        which a row shows that it was carried out, or its absence that it was not, is bound to that from now on.
        """
        findings = Findings(transactions=sum(map(len, expected.values())))
        seen: Counter[tuple[int, int]] = Counter()
        for client, number, account, amount in rows:
            seen[client, number] += 1
            if (account, amount) != order(client, number):
                findings.wrong += 1
                findings.found(f"transaction {client}/{number} is {account}, {amount}, not {order(client, number)}")
        for (client, number), count in seen.items():
            if count > 1:
                findings.twice += 1
                findings.found(f"transaction {client}/{number} is there {count} times")
            self._judge_presence(client, number, findings)
        for client, numbers in expected.items():
            for number in sorted(numbers - {of for name, of in seen if name == client}):
                findings.lost += 1
                findings.found(f"transaction {client}/{number} was acknowledged and is not there")
        return findings

    def _judge_presence(self, client: int, number: int, findings: Findings) -> None:
        of = self._clients.get(client, _Client())
        if number > of.last + 1:
            findings.wrong += 1
            findings.found(f"transaction {client}/{number} is there and was never ordered")
        of.unanswered.discard(number)  # it was carried out: from now on it must stay
