# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of granting, on the one record that an arbiter keeps of a VM. Pure.

The record says which term was granted last, and to whom. What must never break: no term is granted to two hosts,
unless the first one said that it never used it, or an operator vouched for the second.

Terms are also raised without the arbiter, by the word of two hosts that see each other; whoever speaks by such a
term lets the arbiter know with the next renewal.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from appliance.spoken import Term

NOBODY = ""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The highest term that was granted or made known, and the host that holds it; NOBODY: anyone may have it."""

    term: Term = 0
    host: str = NOBODY


@dataclass(frozen=True)
class Answer:
    """Granted or not, and why. `term`: what was taken by force."""

    granted: bool
    reason: str
    term: int = 0


def force(record: Record, host: str, term: int) -> tuple[Record, Answer]:
    """The operator vouches for `host`: it gets `term`, or the next one above all that was granted or made known."""
    free = max(term, record.term + 1)
    return Record(free, host), Answer(True, f"term {free} by the operator's word", free)


def ask(record: Record, host: str, term: int) -> tuple[Record, Answer]:
    """`host` wants `term`."""
    if term > record.term or term == record.term and record.host in (NOBODY, host):
        return Record(term, host), Answer(True, f"term {term} is granted")
    if term == record.term:
        return record, Answer(False, f"term {term} was granted to {record.host}")
    return record, Answer(False, f"term {term} is over: {record.host or 'nobody'} has term {record.term}")


def renew(record: Record, host: str, term: int) -> tuple[Record, Answer]:
    """`host` speaks under `term`: may it go on? An equal term that another host was granted never came to be used:
    this one speaks with its consent."""
    if term >= record.term:
        return Record(term, host), Answer(True, f"term {term} stands")
    if record.host in (NOBODY, host):
        return record, Answer(True, f"term {term} stands: term {record.term} is not in use")
    return record, Answer(False, f"term {record.term} was granted to {record.host}")


def withdraw(record: Record, host: str, used: int) -> Record:
    """`host` never used, and never will use, what it was granted above term `used`."""
    return Record(record.term, NOBODY) if record.host == host and record.term > used else record
