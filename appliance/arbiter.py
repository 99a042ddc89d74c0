# SPDX-License-Identifier: GPL-2.0-or-later
"""Who decides about the next term when the hosts cannot see each other: where an arbiter plugs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Answer:
    """Granted or not, and why."""

    granted: bool
    reason: str


class Arbiter(Protocol):
    """Grants each term of a VM at most once."""

    name: str

    async def ask(self, vm: str, term: int, force: bool = False) -> Answer:
        """May this host hold `term` of `vm`? Returns within a bounded time; no answer counts as no. `force`: the
        operator vouches for it, whatever was granted."""

    async def renew(self, vm: str, term: int) -> Answer | None:
        """Does this host's `term` of `vm` stand? None: no answer."""


class NoArbiter:
    """No third party. Silence of the peer is then taken for its death only if the operator accepted that two
    hosts speak when both links are cut while both hosts live."""

    name = "none"

    def __init__(self, accept_split_brain_risk: bool) -> None:
        self._accept = accept_split_brain_risk

    async def renew(self, vm: str, term: int) -> Answer | None:
        return Answer(True, "no arbiter")

    async def ask(self, vm: str, term: int, force: bool = False) -> Answer:
        if self._accept:
            return Answer(True, "no arbiter; the risk of two speakers is accepted in the configuration")
        return Answer(False, "the peer is silent and no arbiter can tell a dead host from cut cables "
                             "(configure an arbiter, or arbiter.accept_split_brain_risk = true)")
