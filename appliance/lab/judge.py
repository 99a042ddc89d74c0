# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client may rightly expect of a server that never fails, and what falls short of it.

Pure bookkeeping, no sockets. The rule behind both judges: an answer that the client saw binds the server for
ever; an operation whose answer was lost (the connection broke) may have been carried out or not, but only
whole and only once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass
class CounterJudge:
    """INCR on one counter that nobody else touches.

    The true value is always in [acknowledged, acknowledged + unanswered].
    """

    acknowledged: int = 0
    unanswered: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)

    def reply(self, value: int) -> None:
        """INCR answered `value`."""
        lowest = self.acknowledged + 1
        self._check(value, lowest, lowest + self.unanswered, "INCR answered")
        self.acknowledged = value  # go on from what the server says, so that one loss counts once
        self.unanswered = 0

    def no_reply(self) -> None:
        """The connection broke after an INCR was sent: it may count or not."""
        self.unanswered += 1

    def final(self, value: int) -> None:
        """The counter reads `value` at the end."""
        self._check(value, self.acknowledged, self.acknowledged + self.unanswered, "the counter ends at")

    def _check(self, value: int, lowest: int, highest: int, what: str) -> None:
        if value < lowest:
            self.lost += lowest - value
            self.problems.append(f"{what} {value}, at least {lowest} expected: acknowledged INCRs were lost")
        elif value > highest:
            self.problems.append(f"{what} {value}, at most {highest} expected: an INCR was carried out twice")


@dataclass
class WriteJudge:
    """SET of ever new keys, each written once: an acknowledged one must read back as written."""

    run: str
    acknowledged: list[int] = field(default_factory=list)
    unanswered: set[int] = field(default_factory=set)
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    LISTED = 10  # problems named one by one; the rest is counted

    def key(self, index: int) -> str:
        return f"{self.run}:{index}"

    def value(self, index: int) -> str:
        """The value of a key: derived from it, so that any mix-up shows."""
        return hashlib.blake2b(self.key(index).encode(), digest_size=16).hexdigest()

    def read_back(self, index: int, value: str | None) -> None:
        """The key `index` reads `value` at the end (None: does not exist)."""
        if value == self.value(index) or (value is None and index in self.unanswered):
            return
        if index not in self.unanswered:
            self.lost += 1
        if len(self.problems) < self.LISTED:
            found = "is missing" if value is None else f"reads {value[:40]!r}"
            kind = "unanswered" if index in self.unanswered else "acknowledged"
            self.problems.append(f"the {kind} write of key {self.key(index)} {found}")
