# SPDX-License-Identifier: GPL-2.0-or-later
"""Two decision cores, a network between them, disks and an arbiter, all simulated; the judge of the invariants.

A host's world is reduced to what the invariants speak of: what is on disk, whether a VM runs or a replica is
whole, and whether output goes out freely (solo) or only as epochs commit, under a lease that the other host knows
the end of. A host may sleep: it does nothing, and hears all it missed when it wakes up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from appliance import core
from appliance.core import Phase, Role, State
from appliance.decide import step

LEASE = 0.08
"""Seconds for which a protected primary may still speak after the last link went."""


@dataclass
class Host:
    name: str
    home: bool
    disk: tuple[int, Role] = (0, Role.NONE)
    state: State | None = None
    running: bool = False
    replica: bool = False
    whole: bool = False
    copy: int = 0
    """The number of the replica here, or of the one that the first copy is meant for."""
    free: bool = False
    """Output goes out as it comes."""
    spoke_term: int = 0
    syncing: bool = False
    holding: bool = False
    """The last pause of the first copy is over: nothing goes out before its epoch commits."""
    mute: bool = False
    """It was told to release nothing more."""
    lease_until: float = 0.0
    """While holding: may speak until then once the links are gone."""
    outdated: bool = False
    """The other host spoke since this one's VM or replica was the latest."""
    asleep: bool = False
    missed: deque[core.Event] = field(default_factory=deque)
    todo: deque[core.Effect] = field(default_factory=deque)
    inbox: deque[core.Peer] = field(default_factory=deque)


class Pair:
    """Drive it with the methods; each checks the invariants afterwards."""

    def __init__(self, arbiter: bool = True) -> None:
        self.hosts = {name: Host(name, name == "alpha") for name in ("alpha", "beta")}
        self.linked = False
        self.grants: dict[int, str] = {}
        self.reign = (0, "")
        """The latest: its term, and who spoke under it."""
        self.arbiter = arbiter
        self.now = 0.0
        for host in self.hosts.values():
            self.boot(host)

    def other(self, host: Host) -> Host:
        return self.hosts["beta" if host.name == "alpha" else "alpha"]

    def boot(self, host: Host) -> None:
        term, role = host.disk
        phase = Phase.FENCED if role is Role.FENCED else Phase.WAITING
        host.state = State(host.name, host.home, term, role, phase, highest=term)
        if self.linked:
            self.relink()

    def relink(self) -> None:
        """A new session, which takes two that are awake: what was under way is lost, both sides see down and up."""
        self.unlink()
        if all(host.state is not None and not host.asleep for host in self.hosts.values()):
            self.linked = True
            for host in self.hosts.values():
                self.feed(host, core.PeerUp())

    def unlink(self) -> None:
        was, self.linked = self.linked, False
        for host in self.hosts.values():
            host.inbox.clear()
            host.lease_until = self.now + LEASE if was else host.lease_until
        if was:
            for host in self.hosts.values():
                if host.state is not None:
                    self.feed(host, core.PeerDown("cut", host.asleep, self.now + LEASE))

    def crash(self, host: Host) -> None:
        host.state = None
        self.loses(host)
        host.running = host.replica = host.whole = host.free = host.syncing = host.holding = False
        host.asleep = host.outdated = False
        host.todo.clear()
        host.missed.clear()
        self.unlink()

    def feed(self, host: Host, event: core.Event) -> None:
        if host.state is None:
            return
        if host.asleep:
            host.missed.append(event)
            return
        for effect in self.decide(host, event):
            self.perform(host, effect)
        self.check()

    def decide(self, host: Host, event: core.Event) -> list[core.Effect]:
        """The core's own step."""
        assert host.state is not None
        host.state, effects = step(host.state, event, self.now)
        return effects

    def perform(self, host: Host, effect: core.Effect) -> None:
        match effect:
            case core.Tell():
                if self.linked and host.state is not None:
                    s = host.state
                    self.other(host).inbox.append(core.Peer(s.phase, s.term, s.last, s.role, s.home, not s.writing,
                                                             s.copy, s.lifts, s.heard))
            case core.Speak(term):
                assert host.disk == (term, Role.PRIMARY), f"{host.name} speaks under a term that is not on disk"
                assert host.running, f"{host.name} speaks for a VM that does not run"
                assert not host.outdated, f"{host.name} speaks for a VM that has forgotten what clients saw"
                assert term > self.reign[0] or (term, host.name) == self.reign, f"{host.name} speaks under an old term"
                self.reign = (term, host.name)
                host.free, host.spoke_term, host.holding, host.mute = True, term, False, False
                self.other(host).outdated = self.other(host).running or self.other(host).whole
            case core.Hold():
                host.free, host.mute = False, True
            case core.StopVm():
                self.loses(host)
                host.free = host.running = host.replica = host.whole = host.syncing = host.holding = False
                host.outdated = False
                host.todo = deque(e for e in host.todo if isinstance(e, core.Persist | core.Ask))
            case core.StartSync(copy):
                host.syncing, host.copy = True, copy
            case core.StopSync():
                host.syncing = False
            case core.Wake():
                pass  # time is the test's
            case _:
                host.todo.append(effect)

    def work(self, host: Host, *, fails: bool = False) -> None:
        """The oldest thing the host was told to do is done, or fails."""
        if host.state is None or not host.todo or host.asleep:
            return
        match host.todo.popleft():
            case core.Persist(term, role):
                assert term >= host.disk[0], f"{host.name} forgets a term"
                host.disk = (term, role)
                self.feed(host, core.Persisted(term, role))
            case core.Ask(term):
                if self.arbiter and not fails and self.grantable(host, term):
                    self.grants[term] = host.name
                    self.feed(host, core.Granted(term))
                else:
                    self.feed(host, core.Refused("no"))
            case core.Force(term):
                self.feed(host, core.Forced(self.forced(host, term)))
            case core.StartVm():
                host.running, host.outdated = not fails, False
                self.feed(host, core.VmLost("failed") if fails else core.VmRunning())
            case core.HandOver():
                self.hand_over(host, fails=fails)
            case core.StartReplica(copy):
                host.replica, host.whole, host.copy = not fails, False, copy
                self.feed(host, core.VmLost("failed") if fails else core.ReplicaReady())
            case core.TakeOver():
                assert host.whole, f"{host.name} takes over from a replica that is not whole"
                host.running, host.replica, host.whole = not fails, False, False
                self.feed(host, core.VmLost("failed") if fails else core.VmRunning())

    def grantable(self, host: Host, term: int) -> bool:
        """Each term to one host, once, for ever."""
        held = max(self.grants, default=0)
        return term > held or self.grants.get(term) == host.name and term == held

    def forced(self, host: Host, term: int) -> int:
        """The term that the operator's word gives a host: above all that the arbiter knows of. Whoever never met the
        peer cannot know of what the arbiter does not: that the peer is off is the operator's word."""
        if self.arbiter:
            term = max(term, max(self.grants, default=0) + 1)
            self.grants[term] = host.name
        if term <= self.reign[0]:
            self.reign = (0, "")
        return term

    def hand_over(self, host: Host, *, fails: bool) -> None:
        """The last epoch is committed and its output is out, or the VM runs on."""
        if fails or not (self.linked and self.other(host).whole and host.holding):
            self.feed(host, core.HandOverFailed("failed"))
        elif host.state is not None and host.state.phase is Phase.HANDOVER:
            host.holding = host.syncing = False  # the guard is shut, no epoch follows
            self.feed(host, core.HandedOver())

    def deliver(self, host: Host) -> None:
        if self.linked and host.inbox and not host.asleep:
            self.feed(host, core.PeerSays(host.inbox.popleft()))

    def first_epoch(self, host: Host) -> None:
        """The primary's first copy ends: it holds from here on, and the backup may be whole."""
        peer = self.other(host)
        if host.asleep or peer.asleep or not self.linked:
            return
        if host.state is not None and host.syncing and host.running and not host.holding:
            host.free, host.holding = False, True
            if peer.replica and self.meant_for(host, peer):
                peer.whole, peer.outdated = True, False
                self.feed(peer, core.ReplicaWhole())

    def meant_for(self, host: Host, peer: Host) -> bool:
        """Is what `host` sends for the replica that `peer` has now?"""
        ends = (host.state, peer.state)
        return len({end.term for end in ends if end is not None}) == 1 and host.copy == peer.copy

    def first_ack(self, host: Host) -> None:
        asleep = host.asleep or self.other(host).asleep
        if host.syncing and host.holding and self.linked and self.other(host).whole and not asleep:
            self.feed(host, core.SyncDone())

    def loses(self, host: Host) -> None:
        """What was spoken alone goes with it, even if it fell silent before: what the other has is the latest there
        is."""
        if host.running and not host.outdated:
            self.other(host).outdated = False

    def kill_vm(self, host: Host) -> None:
        if host.running or host.replica:
            self.loses(host)
            host.running = host.replica = host.whole = host.outdated = host.free = False
            self.feed(host, core.VmLost("killed"))

    def sleep(self, host: Host) -> None:
        """It stands still; what it may say in the meantime ends with its lease."""
        if host.state is not None and not host.asleep:
            host.asleep = True
            host.lease_until = max(host.lease_until, self.now + LEASE if self.linked else 0.0)

    def wake(self, host: Host) -> None:
        """It runs again and hears what it missed, in order."""
        host.asleep = False
        missed, host.missed = host.missed, deque()
        for event in missed:
            self.feed(host, event)

    def tick(self, seconds: float = core.RETRY + 0.1) -> None:
        self.now += seconds
        for host in self.hosts.values():
            self.feed(host, core.Tick())

    def check(self) -> None:
        speakers = [host.name for host in self.hosts.values() if self.speaks(host)]
        assert len(speakers) <= 1, f"two speakers: {speakers}"
        for host in self.hosts.values():
            if host.free and self.other(host).whole:
                peer = self.other(host)
                # A whole replica of this reign beside free speech could take over without what clients saw;
                # one that an older reign left behind is harmless, its term can be granted to nobody.
                assert peer.state is None or peer.state.term < host.spoke_term, "free speech beside a whole replica"

    def speaks(self, host: Host) -> bool:
        """Could a frame leave it? While holding: with links, as epochs commit; without, until its lease ends."""
        leased = self.linked and not host.asleep or self.now < host.lease_until
        return host.free or host.holding and host.running and not host.mute and leased

    def settle(self, rounds: int = 200) -> None:
        """Let everything that is under way happen, with a healthy network and arbiter."""
        for _ in range(rounds):
            for host in self.hosts.values():
                while host.todo and not host.asleep:
                    self.work(host)
                while host.inbox and not host.asleep:
                    self.deliver(host)
                self.first_epoch(host)
                self.first_ack(host)
            if not any((h.todo or h.inbox) and not h.asleep for h in self.hosts.values()):
                if {h.state.phase for h in self.hosts.values() if h.state} == {Phase.PROTECTED, Phase.STANDBY}:
                    return
                self.tick()

    def finds_together(self) -> None:
        """All is whole again, and in the end the VM is protected."""
        self.arbiter = True
        for host in self.hosts.values():
            if host.state is None:
                self.boot(host)
            self.wake(host)
            self.settle(3)
        self.relink()
        self.settle(20)
        for host in self.hosts.values():
            self.feed(host, core.Lift())
            self.feed(host, core.Want(True))
        self.settle(400)
        phases = {host.state.phase for host in self.hosts.values() if host.state}
        assert phases == {Phase.PROTECTED, Phase.STANDBY}, phases
