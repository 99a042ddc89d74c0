# SPDX-License-Identifier: GPL-2.0-or-later
"""What PostgreSQL finds when it checks itself: every index against its table, every table, every checksum so far.

https://www.postgresql.org/docs/15/amcheck.html
"""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.lab.postgres import Postgres
from appliance.lab.streams import WrongAnswer

LISTED = 10
_INDEXES = """FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid
    AND starts_with(t.relname::text, '%s')"""
_TABLES = """FROM pg_class c WHERE relkind IN ('r', 't', 'm') AND relpersistence = 'p'
    AND starts_with(relname::text, '%s')"""


@dataclass
class Soundness:
    """`indexes`, `tables`: how many were checked. `problems`: in words; empty when the database is sound."""

    indexes: int = 0
    tables: int = 0
    problems: list[str] = field(default_factory=list)


def check(session: Postgres, prefix: str = "") -> Soundness:
    """Everything in the session's database, catalogs too; or what a table's name that begins with `prefix` leads to.

    Raises OSError; a refusal of PostgreSQL is a problem.
    """
    found = Soundness()
    if session.query("SHOW data_checksums") != [("on",)]:
        found.problems.append("data checksums are off")
    failures = session.query("SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database")
    if failures != [("0",)]:
        found.problems.append(f"{failures[0][0]} pages failed their checksum")
    indexes, tables = _INDEXES % prefix, _TABLES % prefix
    found.indexes, found.tables = (int(session.query(f"SELECT count(*) {of}")[0][0] or 0) for of in (indexes, tables))
    # All in one question, because each is a round trip to a guest whose output is held; it ends at the first fault.
    # heapallindexed (the second argument): every row of the table is in the index.
    _ask(session, f"SELECT count(bt_index_check(c.oid, true)) {indexes}", found)
    faults = f"SELECT c.oid::regclass, f.blkno, f.offnum, f.msg {tables}".replace(
        "FROM pg_class c", "FROM pg_class c CROSS JOIN LATERAL verify_heapam(c.oid) f"
    )
    for table, page, row, what in _ask(session, f"{faults} LIMIT {LISTED}", found):
        found.problems.append(f"table {table}, page {page}, row {row}: {what}")
    return found


def _ask(session: Postgres, sql: str, found: Soundness) -> list[tuple[str | None, ...]]:
    try:
        return session.query(sql)
    except WrongAnswer as error:
        found.problems.append(str(error))
        return []
