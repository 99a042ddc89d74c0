# SPDX-License-Identifier: GPL-2.0-or-later
"""What PostgreSQL finds when it checks itself: every index against its table, every table, every checksum so far.

https://www.postgresql.org/docs/15/amcheck.html
"""

from __future__ import annotations

from dataclasses import dataclass, field

from appliance.lab.postgres import Postgres
from appliance.lab.streams import WrongAnswer

LISTED = 10
_INDEXES = """SELECT c.oid, c.oid::regclass FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid
    AND starts_with((SELECT relname FROM pg_class WHERE oid = i.indrelid)::text, '%s')"""
_TABLES = """SELECT oid, oid::regclass FROM pg_class WHERE relkind IN ('r', 't', 'm') AND relpersistence = 'p'
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
    for oid, name in session.query(_INDEXES % prefix):
        # heapallindexed: every row of the table is in the index.
        _ask(session, f"SELECT bt_index_check({oid}, true)", f"index {name}", found)
        found.indexes += 1
    for oid, name in session.query(_TABLES % prefix):
        rows = _ask(session, f"SELECT blkno, offnum, msg FROM verify_heapam({oid}) LIMIT 3", f"table {name}", found)
        found.problems += [f"table {name}, page {page}, row {row}: {what}" for page, row, what in rows]
        found.tables += 1
    del found.problems[LISTED:]
    return found


def _ask(session: Postgres, sql: str, of: str, found: Soundness) -> list[tuple[str | None, ...]]:
    try:
        return session.query(sql)
    except WrongAnswer as error:
        found.problems.append(f"{of}: {error}")
        return []
