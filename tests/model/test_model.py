# SPDX-License-Identifier: GPL-2.0-or-later
"""The model check itself: the small searches find nothing, and each property finds the defect that breaks it.

`make model` does the whole search; what it does here with fewer faults shows that the model can be run.
"""

from __future__ import annotations

import pytest

from tests.model.run import CONFIGURATIONS, KINDS, NotRun, understood, verify

pytestmark = pytest.mark.slow

TWO_SPEAKERS = "free[0]||"
BESIDE_A_REPLICA = "==3))&&"
OLD_TERM = "reign"
NOT_ON_DISK = "disk_term"
NOT_WHOLE = "torn"
NOT_COMMITTED = "committed"
APART = "phase["

SEEDED = {
    "NO_LEASE_WAIT": ("CUT", (TWO_SPEAKERS, OLD_TERM)),
    "GRANT_TWICE": ("CUT", (TWO_SPEAKERS, OLD_TERM)),
    "TERM_SKIPPED": ("CUT", (TWO_SPEAKERS, OLD_TERM)),
    "ASKED_TWICE": ("CUT", (TWO_SPEAKERS, OLD_TERM)),
    "OLD_TERM": ("CRASH CUT", (OLD_TERM,)),
    "FORGETS": ("CRASH CUT", (OLD_TERM,)),
    "SPEAK_BEFORE_PERSIST": ("CRASH", (NOT_ON_DISK,)),
    "RELEASE_BEFORE_COMMIT": ("", (NOT_COMMITTED,)),
    "SPEAK_BESIDE_REPLICA": ("BREAK CUT", (BESIDE_A_REPLICA,)),
    "STALE_COPY": ("KILL", (BESIDE_A_REPLICA,)),
    "OLD_WORD": ("BREAK CUT", (BESIDE_A_REPLICA,)),
    "PARTIAL_EPOCH": ("CUT", (NOT_WHOLE,)),
    "HALF_IS_WHOLE": ("CUT", (NOT_WHOLE,)),
    "NEVER_GIVES_UP": ("CUT", (APART,)),
    "NOT_LOOKED_AGAIN": ("KILL", (APART,)),
}
"""What is broken; the kinds of faults that bring it to light; and the property that must notice: the assertion as
SPIN prints it, either of two where two hosts that speak do so under the same term."""


@pytest.mark.parametrize("name", [name for name, defines in CONFIGURATIONS.items() if "FAULTS=2" not in defines])
def test_a_small_search_finds_nothing(name: str) -> None:
    result = verify(CONFIGURATIONS[name], optimise="-O0")
    assert result.proven, result
    assert result.states > 1000


@pytest.mark.parametrize("bug", SEEDED)
def test_a_defect_is_found(bug: str) -> None:
    kinds, properties = SEEDED[bug]
    only = ("SAFETY_ONLY",) if APART not in properties else ()
    result = verify((f"BUG_{bug}", "FAULTS=2", "MOVES=1", *kinds.split(), *only), optimise="-O0")
    assert result.errors, f"the model does not notice: {result}"
    assert any(part in result.failure for part in properties), result.failure
    assert not result.proven


def test_a_search_that_is_cut_short_proves_nothing() -> None:
    result = verify(("FAULTS=1", "MOVES=0", *KINDS), optimise="-O0", depth=40)
    assert not result.errors and result.incomplete == "max search depth too small"
    assert not result.proven


def test_a_search_that_ends_without_a_result_is_none() -> None:
    with pytest.raises(NotRun, match="out of memory"):
        understood("pan: out of memory", 1.0)
