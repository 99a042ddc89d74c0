# SPDX-License-Identifier: GPL-2.0-or-later
"""The decision core: the ways a pair is meant to go, and random faults that must not break an invariant."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance import core
from appliance.core import Phase, Role
from tests.core.simulation import Pair


def phases(pair: Pair) -> dict[str, Phase | None]:
    return {name: host.state.phase if host.state else None for name, host in pair.hosts.items()}


@pytest.fixture
def protected() -> Pair:
    pair = Pair()
    pair.relink()
    pair.settle()
    assert phases(pair) == {"alpha": Phase.PROTECTED, "beta": Phase.STANDBY}
    return pair


def test_home_host_starts_a_fresh_vm(protected: Pair) -> None:
    assert protected.hosts["alpha"].disk == (1, Role.PRIMARY)
    assert protected.hosts["beta"].disk == (1, Role.BACKUP)


def test_alone_from_the_start_it_waits() -> None:
    pair = Pair()
    pair.tick()
    assert phases(pair) == {"alpha": Phase.WAITING, "beta": Phase.WAITING}


def test_crash_of_the_primary(protected: Pair) -> None:
    protected.crash(protected.hosts["alpha"])
    protected.settle()
    assert phases(protected) == {"alpha": None, "beta": Phase.SOLO}
    assert protected.hosts["beta"].disk == (2, Role.PRIMARY)
    protected.boot(protected.hosts["alpha"])
    protected.relink()
    protected.settle()
    assert phases(protected) == {"alpha": Phase.STANDBY, "beta": Phase.PROTECTED}


def test_death_of_qemu_needs_no_grant(protected: Pair) -> None:
    protected.arbiter = False
    protected.kill_vm(protected.hosts["alpha"])
    protected.settle()
    assert phases(protected) == {"alpha": Phase.STANDBY, "beta": Phase.PROTECTED}


def test_crash_of_the_backup(protected: Pair) -> None:
    protected.crash(protected.hosts["beta"])
    assert phases(protected)["alpha"] is Phase.ASKING and not protected.hosts["alpha"].free
    protected.settle()
    assert phases(protected)["alpha"] is Phase.SOLO


def test_without_a_grant_both_stay_closed_and_recover(protected: Pair) -> None:
    protected.arbiter = False
    protected.unlink()
    for _ in range(5):
        for host in protected.hosts.values():
            while host.todo:
                protected.work(host)
        protected.tick()
    assert not any(host.free for host in protected.hosts.values())
    protected.relink()
    protected.settle()
    assert phases(protected) == {"alpha": Phase.PROTECTED, "beta": Phase.STANDBY}


def test_partition_has_one_speaker_and_heals(protected: Pair) -> None:
    protected.unlink()
    alpha, beta = protected.hosts.values()
    protected.grants[2] = "beta"  # beta asked first
    protected.settle(20)
    assert beta.free and not alpha.free
    protected.relink()
    protected.settle()
    assert phases(protected) == {"alpha": Phase.STANDBY, "beta": Phase.PROTECTED}


def test_power_loss_of_both_starts_the_last_active(protected: Pair) -> None:
    protected.crash(protected.hosts["alpha"])
    protected.settle()
    protected.crash(protected.hosts["beta"])
    for host in protected.hosts.values():
        protected.boot(host)
    protected.relink()
    protected.settle()
    assert phases(protected) == {"alpha": Phase.STANDBY, "beta": Phase.PROTECTED}
    assert protected.hosts["beta"].disk == (3, Role.PRIMARY)


def test_leaving_primary_hands_over(protected: Pair) -> None:
    protected.arbiter = False
    protected.feed(protected.hosts["alpha"], core.Leaving())
    protected.settle(5)
    assert phases(protected)["beta"] is Phase.SOLO


def test_failed_replication_never_speaks_beside_a_whole_replica(protected: Pair) -> None:
    alpha = protected.hosts["alpha"]
    protected.feed(alpha, core.SyncFailed("disk of the tracker full"))
    assert phases(protected)["alpha"] is Phase.ASKING and not alpha.free
    protected.settle()
    assert phases(protected) == {"alpha": Phase.PROTECTED, "beta": Phase.STANDBY}


def test_the_operators_word_gives_a_term_that_nobody_had() -> None:
    """Two hosts that never met, each started by the operator while the other was off."""
    pair = Pair()
    for name in ("beta", "alpha"):
        other = pair.other(pair.hosts[name])
        pair.crash(other)
        pair.feed(pair.hosts[name], core.PeerIsOff())
        pair.settle(4)
        pair.boot(other)
    assert {name: host.disk for name, host in pair.hosts.items()} == {"alpha": (3, Role.PRIMARY),
                                                                      "beta": (2, Role.PRIMARY)}
    pair.relink()
    pair.settle()
    assert phases(pair) == {"alpha": Phase.PROTECTED, "beta": Phase.STANDBY}


def test_what_was_said_to_a_fenced_host_does_not_count_once_its_fence_is_lifted() -> None:
    """The peer may be taking its place: both would start the VM."""
    pair = Pair()
    pair.relink()  # what beta says of itself is under way
    alpha, beta = pair.hosts["alpha"], pair.hosts["beta"]
    pair.feed(alpha, core.Fence("ordered"))
    pair.work(alpha)
    pair.feed(alpha, core.Lift())
    while beta.state is not None and beta.state.wanted is None:
        pair.deliver(beta)  # alpha is fenced: beta takes its place
    pair.work(alpha)
    pair.deliver(alpha)  # what beta said before
    for host in (alpha, beta, alpha, beta):
        pair.work(host)
    pair.settle()
    assert phases(pair) == {"alpha": Phase.STANDBY, "beta": Phase.PROTECTED}


NAMES = st.sampled_from(["alpha", "beta"])


class Faults(RuleBasedStateMachine):
    """Anything may happen at any time; at the end the pair must find together again."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(name=NAMES, fails=st.sampled_from([False, False, False, True]))
    def work(self, name: str, fails: bool) -> None:
        self.pair.work(self.pair.hosts[name], fails=fails)

    @rule(name=NAMES)
    def deliver(self, name: str) -> None:
        self.pair.deliver(self.pair.hosts[name])

    @rule(name=NAMES)
    def first_epoch(self, name: str) -> None:
        self.pair.first_epoch(self.pair.hosts[name])

    @rule(name=NAMES)
    def first_ack(self, name: str) -> None:
        self.pair.first_ack(self.pair.hosts[name])

    @rule()
    def settle(self) -> None:
        self.pair.settle(8)

    @rule(name=NAMES)
    def crash(self, name: str) -> None:
        self.pair.crash(self.pair.hosts[name])

    @rule(name=NAMES)
    def boot(self, name: str) -> None:
        if self.pair.hosts[name].state is None:
            self.pair.boot(self.pair.hosts[name])

    @rule(name=NAMES)
    def kill_vm(self, name: str) -> None:
        self.pair.kill_vm(self.pair.hosts[name])

    @rule(name=NAMES)
    def switch_over(self, name: str) -> None:
        self.pair.feed(self.pair.hosts[name], core.SwitchOver("ordered"))

    @rule(name=NAMES, paused=st.booleans())
    def pause(self, name: str, paused: bool) -> None:
        self.pair.feed(self.pair.hosts[name], core.Want(not paused))

    @rule(name=NAMES, fenced=st.booleans())
    def fence(self, name: str, fenced: bool) -> None:
        self.pair.feed(self.pair.hosts[name], core.Fence("ordered") if fenced else core.Lift())

    @rule(name=NAMES)
    def sleep(self, name: str) -> None:
        self.pair.sleep(self.pair.hosts[name])

    @rule(name=NAMES)
    def wake(self, name: str) -> None:
        self.pair.wake(self.pair.hosts[name])

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.05, 0.1]))
    def time_passes(self, seconds: float) -> None:
        self.pair.tick(seconds)

    @rule(name=NAMES)
    def peer_is_off(self, name: str) -> None:
        """The operator's word, when it is true."""
        host = self.pair.hosts[name]
        if self.pair.other(host).state is None:
            self.pair.feed(host, core.PeerIsOff())

    @rule(name=NAMES)
    def revoked(self, name: str) -> None:
        self.pair.feed(self.pair.hosts[name], core.Revoked("a higher term was granted"))

    @rule(up=st.booleans())
    def arbiter(self, up: bool) -> None:
        self.pair.arbiter = up

    @rule(name=NAMES)
    def sync_fails(self, name: str) -> None:
        self.pair.feed(self.pair.hosts[name], core.SyncFailed("fault"))

    @rule()
    def cut(self) -> None:
        self.pair.unlink()

    @rule()
    def join(self) -> None:
        self.pair.relink()

    @rule()
    def tick(self) -> None:
        self.pair.tick()

    @invariant()
    def one_speaker(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        self.pair.finds_together()


Faults.TestCase.settings = settings(max_examples=500, stateful_step_count=60, deadline=None,
                                    suppress_health_check=list(HealthCheck))
TestFaults = Faults.TestCase
