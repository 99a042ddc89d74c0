# SPDX-License-Identifier: GPL-2.0-or-later
"""Each check of the simulation can fail: a defect in the core, or in what carries it out, is found by the walks that
find nothing in the core as it is. Seeds make them the same every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from appliance import core, decide, moves
from appliance.core import Role
from appliance.turn import Turn
from tests.core import simulation
from tests.core.simulation import Host, Pair
from tests.core.walk import walk

pytestmark = pytest.mark.slow

WALKS = 6000
"""Within so many a defect is found."""
Patch = pytest.MonkeyPatch


def no_lease_wait(patch: Patch) -> None:
    right = decide._vm_running

    def wrong(turn: Turn) -> None:
        turn.set(peer_speaks_until=0.0)
        right(turn)

    patch.setattr(decide, "_vm_running", wrong)


def no_end_of_the_lease(patch: Patch) -> None:
    patch.setattr(Pair, "speaks", lambda _, host: host.free or host.holding and host.running and not host.mute)


def speaks_before_it_is_on_disk(patch: Patch) -> None:
    def wrong(turn: Turn, term: int) -> None:
        turn.persist(term, Role.PRIMARY)
        decide._persisted(turn, term, Role.PRIMARY)

    patch.setattr(decide, "granted", wrong)


def forgets_its_term(patch: Patch) -> None:
    right = Pair.boot

    def wrong(pair: Pair, host: Host) -> None:
        host.disk = (0, Role.NONE)
        right(pair, host)

    patch.setattr(Pair, "boot", wrong)


def does_not_ask(patch: Patch) -> None:
    right = decide._peer_silent

    def wrong(turn: Turn, reason: str) -> None:
        right(turn, reason)
        if turn.state.phase is core.Phase.ASKING and turn.state.wanted is None:
            turn.persist(turn.state.term + 1, Role.PRIMARY)

    patch.setattr(decide, "_peer_silent", wrong)


def grants_twice(patch: Patch) -> None:
    patch.setattr(Pair, "grantable", lambda *_: True)


def asks_for_the_term_after_next(patch: Patch) -> None:
    def wrong(turn: Turn) -> int:
        return turn.state.term + (2 if turn.state.phase is core.Phase.HANDED else 1)

    for module in (decide, moves):
        patch.setattr(module, "next_term", wrong)
    patch.setattr(decide, "granted", lambda turn, term: turn.persist(term, Role.PRIMARY))


def counts_a_grant_twice(patch: Patch) -> None:
    right = decide.granted

    def wrong(turn: Turn, term: int) -> None:
        if turn.state.next_granted:
            turn.persist(term, Role.PRIMARY)
        else:
            right(turn, term)

    patch.setattr(decide, "granted", wrong)


def speaks_under_an_old_term(patch: Patch) -> None:
    right = decide._asking_primary_hears

    def wrong(turn: Turn, peer: core.Peer) -> None:
        older = core.Peer(peer.phase, turn.state.term, peer.last, peer.role, peer.home, peer.settled, peer.copy)
        right(turn, older)

    patch.setattr(decide, "_asking_primary_hears", wrong)


def never_gives_way(patch: Patch) -> None:
    patch.setattr(decide, "_yields", lambda *_: False)


def gives_way_to_the_older(patch: Patch) -> None:
    right = decide._yields
    patch.setattr(decide, "_yields", lambda *args: not right(*args))


def speaks_beside_a_replica(patch: Patch) -> None:
    patch.setattr(decide, "LOST", (*core.LOST, core.Phase.STANDBY))


def takes_half_a_replica_for_whole(patch: Patch) -> None:
    def wrong(state: core.State, event: core.Event, now: float) -> tuple[core.State, list[core.Effect]]:
        after, effects = decide.step(state, event, now)
        copying = isinstance(event, core.PeerSays) and event.peer.phase is core.Phase.SYNCING
        if copying and after.phase is core.Phase.RECEIVING:  # it has begun, no more
            after, more = decide.step(after, core.ReplicaWhole(), now)
            effects += more
        return after, effects

    patch.setattr(simulation, "step", wrong)


def takes_a_copy_meant_for_another(patch: Patch) -> None:
    patch.setattr(Pair, "meant_for", lambda *_: True)


def trusts_old_words(patch: Patch) -> None:
    right = decide._sync_failed

    def wrong(turn: Turn, cause: str) -> None:
        peer = turn.state.peer
        right(turn, cause)
        turn.set(peer=peer)

    patch.setattr(decide, "_sync_failed", wrong)


def releases_while_asking(patch: Patch) -> None:
    right: Callable[[Pair, Host, core.Effect], None] = Pair.perform

    def wrong(pair: Pair, host: Host, effect: core.Effect) -> None:
        right(pair, host, effect)
        if isinstance(effect, core.Hold):
            host.free = host.running

    patch.setattr(Pair, "perform", wrong)


def does_not_rise_above_a_lost_reign(patch: Patch) -> None:
    def wrong(turn: Turn, peer: Any) -> None:
        turn.persist(turn.state.term, Role.PRIMARY)

    patch.setattr(Turn, "claim", wrong)


BUGS = [no_lease_wait, no_end_of_the_lease, speaks_before_it_is_on_disk, forgets_its_term, does_not_ask, grants_twice,
        asks_for_the_term_after_next, counts_a_grant_twice, speaks_under_an_old_term, never_gives_way,
        gives_way_to_the_older, speaks_beside_a_replica, takes_half_a_replica_for_whole,
        takes_a_copy_meant_for_another, trusts_old_words, releases_while_asking, does_not_rise_above_a_lost_reign]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_it_is_found(bug: Callable[[Patch], None], monkeypatch: Patch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        for seed in range(WALKS):
            walk(seed)


def test_nothing_is_found_in_the_core_as_it_is() -> None:
    for seed in range(WALKS // 2):
        walk(seed)
