# SPDX-License-Identifier: GPL-2.0-or-later
"""Courses of events that the model check found: each once ended with two speakers, a lost write or a pair at a loss."""

from __future__ import annotations

import pytest

from appliance import core
from appliance.core import Phase, Role
from tests.core.simulation import Host, Pair

BOTH = {Phase.PROTECTED, Phase.STANDBY}


@pytest.fixture
def pair() -> Pair:
    pair = Pair()
    pair.relink()
    pair.settle()
    return pair


def phase(host: Host) -> Phase | None:
    return host.state.phase if host.state else None


def works(pair: Pair, host: Host) -> None:
    """It does all that it was told to, and waits out what must be waited out."""
    for _ in range(3):
        while host.todo:
            pair.work(host)
        pair.tick()


def handed_over(pair: Pair) -> tuple[Host, Host]:
    alpha, beta = pair.hosts.values()
    pair.feed(alpha, core.SwitchOver("ordered"))
    pair.work(alpha)
    assert phase(alpha) is Phase.HANDED
    return alpha, beta


def yielded(pair: Pair) -> tuple[Host, Host]:
    """alpha yielded the VM, and beta has not heard of it yet."""
    alpha, beta = handed_over(pair)
    while phase(alpha) is Phase.HANDED:
        pair.work(beta)
        pair.deliver(beta)
        pair.deliver(alpha)
    assert phase(alpha) is Phase.YIELDED
    return alpha, beta


def found_together(pair: Pair) -> bool:
    pair.relink()
    pair.settle()
    return {phase(host) for host in pair.hosts.values()} == BOTH


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_a_handover_of_which_the_peer_did_not_hear(pair: Pair, first: str) -> None:
    handed_over(pair)
    pair.unlink()
    for name in (first, "alpha", "beta"):
        works(pair, pair.hosts[name])
    assert [host.name for host in pair.hosts.values() if host.free] == [first]
    assert found_together(pair)


@pytest.mark.parametrize("first", ["alpha", "beta"])
def test_a_handover_of_which_the_peer_heard(pair: Pair, first: str) -> None:
    alpha, beta = handed_over(pair)
    while beta.inbox:
        pair.deliver(beta)
    pair.work(beta)
    assert beta.disk == (2, Role.PRIMARY)
    pair.unlink()
    for name in (first, "alpha", "beta"):
        works(pair, pair.hosts[name])
    assert [host.name for host in pair.hosts.values() if host.free] == [first]
    assert found_together(pair)


def test_a_later_reign_that_was_lost_is_risen_above(pair: Pair) -> None:
    alpha, beta = pair.hosts.values()
    pair.unlink()
    works(pair, beta)
    assert beta.free and beta.spoke_term == 2
    pair.crash(beta)
    pair.boot(beta)
    pair.relink()
    pair.deliver(alpha)
    assert not alpha.free
    pair.settle()
    assert alpha.spoke_term == 3 and {phase(alpha), phase(beta)} == BOTH


@pytest.mark.parametrize("loaded", [False, True])
def test_a_handover_to_a_host_that_a_later_reign_passed_by(pair: Pair, loaded: bool) -> None:
    alpha, beta = handed_over(pair)
    while beta.inbox:
        pair.deliver(beta)
    pair.work(beta)
    pair.unlink()
    works(pair, alpha)
    assert alpha.free and alpha.spoke_term == 3
    if loaded:
        works(pair, beta)
    pair.crash(alpha)
    pair.boot(alpha)
    assert found_together(pair)
    assert beta.spoke_term == 4


def test_the_yielding_host_loses_its_qemu(pair: Pair) -> None:
    alpha, beta = yielded(pair)
    while phase(beta) is not Phase.SOLO:
        pair.deliver(beta)
    while alpha.inbox:
        pair.deliver(alpha)
    pair.kill_vm(alpha)
    pair.settle()
    assert {phase(alpha), phase(beta)} == BOTH


def test_yielded_to_a_host_that_a_late_grant_silenced(pair: Pair) -> None:
    alpha, beta = yielded(pair)
    while phase(beta) is not Phase.SOLO:
        pair.deliver(beta)
    pair.unlink()
    pair.grants[3] = "alpha"  # an answer to a question from before it yielded
    pair.feed(beta, core.Revoked("a higher term was granted"))
    works(pair, beta)
    assert not beta.free
    assert found_together(pair)


def test_a_first_copy_meant_for_a_replica_that_is_gone() -> None:
    pair = Pair()
    pair.relink()
    alpha, beta = pair.hosts.values()
    while phase(alpha) is not Phase.SYNCING:
        for host in (alpha, beta):
            pair.work(host)
            pair.deliver(host)
    pair.kill_vm(beta)
    pair.work(beta)
    assert beta.replica and phase(alpha) is Phase.SYNCING  # which has not heard of it
    pair.first_epoch(alpha)
    assert not beta.whole
    while alpha.inbox:
        pair.deliver(alpha)
    pair.settle()
    assert {phase(alpha), phase(beta)} == BOTH


def test_replication_fails_as_the_replica_becomes_whole() -> None:
    pair = Pair()
    pair.relink()
    alpha, beta = pair.hosts.values()
    while phase(alpha) is not Phase.SYNCING:
        for host in (alpha, beta):
            pair.work(host)
            pair.deliver(host)
    pair.first_epoch(alpha)
    assert beta.whole
    pair.feed(alpha, core.SyncFailed("fault"))  # its last word from the peer is from before
    pair.feed(alpha, core.Refused("a late answer"))
    pair.tick()
    assert not alpha.free
    pair.settle()
    assert {phase(alpha), phase(beta)} == BOTH


def test_the_first_of_two_grants_answered_twice(pair: Pair) -> None:
    alpha, beta = handed_over(pair)
    while beta.inbox:
        pair.deliver(beta)
    pair.unlink()
    for term in (2, 2):
        pair.feed(alpha, core.Granted(term))
    assert alpha.state is not None and alpha.state.wanted is None
    pair.feed(alpha, core.Granted(3))
    assert alpha.state.wanted == (3, Role.PRIMARY)
