# SPDX-License-Identifier: GPL-2.0-or-later
"""Two decision cores, a network between them, disks and an arbiter, all simulated; the judge of the invariants.

A host's world is reduced to what the invariants speak of: what is on disk, whether a VM runs or a replica is
whole, and whether output goes out freely (solo) or only as epochs commit.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from appliance import core
from appliance.core import Phase, Role, State
from appliance.decide import step


@dataclass
class Host:
    name: str
    home: bool
    disk: tuple[int, Role] = (0, Role.NONE)
    state: State | None = None
    running: bool = False
    replica: bool = False
    whole: bool = False
    free: bool = False
    """Output goes out as it comes."""
    spoke_term: int = 0
    syncing: bool = False
    holding: bool = False
    """The last pause of the first copy is over: nothing goes out before its epoch commits."""
    todo: deque[core.Effect] = field(default_factory=deque)
    inbox: deque[core.Peer] = field(default_factory=deque)


class Pair:
    """Drive it with the methods; each checks the invariants afterwards."""

    def __init__(self, arbiter: bool = True) -> None:
        self.hosts = {name: Host(name, name == "alpha") for name in ("alpha", "beta")}
        self.linked = False
        self.grants: dict[int, str] = {}
        self.arbiter = arbiter
        self.now = 0.0
        for host in self.hosts.values():
            self.boot(host)

    def other(self, host: Host) -> Host:
        return self.hosts["beta" if host.name == "alpha" else "alpha"]

    def boot(self, host: Host) -> None:
        term, role = host.disk
        host.state = State(host.name, host.home, term, role)
        if self.linked:
            self.relink()

    def relink(self) -> None:
        """A new session: what was under way is lost, both sides see down and up."""
        self.unlink()
        if all(host.state is not None for host in self.hosts.values()):
            self.linked = True
            for host in self.hosts.values():
                self.feed(host, core.PeerUp())

    def unlink(self) -> None:
        was, self.linked = self.linked, False
        for host in self.hosts.values():
            host.inbox.clear()
        if was:
            for host in self.hosts.values():
                if host.state is not None:
                    self.feed(host, core.PeerDown("cut"))

    def crash(self, host: Host) -> None:
        host.state = None
        host.running = host.replica = host.whole = host.free = host.syncing = host.holding = False
        host.todo.clear()
        self.unlink()

    def feed(self, host: Host, event: core.Event) -> None:
        if host.state is None:
            return
        host.state, effects = step(host.state, event, self.now)
        for effect in effects:
            self.perform(host, effect)
        self.check()

    def perform(self, host: Host, effect: core.Effect) -> None:
        match effect:
            case core.Tell():
                if self.linked and host.state is not None:
                    s = host.state
                    self.other(host).inbox.append(core.Peer(s.phase, s.term, s.last, s.role, s.home, not s.writing))
            case core.Speak(term):
                assert host.disk == (term, Role.PRIMARY), f"{host.name} speaks under a term that is not on disk"
                assert host.running, f"{host.name} speaks for a VM that does not run"
                host.free, host.spoke_term, host.holding = True, term, False
            case core.Hold():
                host.free = False
            case core.StopVm():
                host.free = host.running = host.replica = host.whole = host.syncing = host.holding = False
                host.todo = deque(e for e in host.todo if isinstance(e, core.Persist | core.Ask))
            case core.StartSync():
                host.syncing = True
            case core.StopSync():
                host.syncing = False
            case _:
                host.todo.append(effect)

    def work(self, host: Host, *, fails: bool = False) -> None:
        """The oldest thing the host was told to do is done, or fails."""
        if host.state is None or not host.todo:
            return
        match host.todo.popleft():
            case core.Persist(term, role):
                host.disk = (term, role)
                self.feed(host, core.Persisted(term, role))
            case core.Ask(term):
                if self.arbiter and not fails and self.grants.setdefault(term, host.name) == host.name:
                    self.feed(host, core.Granted(term))
                else:
                    self.feed(host, core.Refused("no"))
            case core.StartVm():
                host.running = not fails
                self.feed(host, core.VmLost("failed") if fails else core.VmRunning())
            case core.StartReplica():
                host.replica, host.whole = not fails, False
                self.feed(host, core.VmLost("failed") if fails else core.ReplicaReady())
            case core.TakeOver():
                assert host.whole, f"{host.name} takes over from a replica that is not whole"
                host.running, host.replica, host.whole = not fails, False, False
                self.feed(host, core.VmLost("failed") if fails else core.VmRunning())

    def deliver(self, host: Host) -> None:
        if self.linked and host.inbox:
            self.feed(host, core.PeerSays(host.inbox.popleft()))

    def first_epoch(self, host: Host) -> None:
        """The primary's first copy ends: it holds from here on, and the backup may be whole."""
        peer = self.other(host)
        ready = peer.state is not None and peer.replica and peer.state.term == host.state.term if host.state else False
        if host.syncing and host.running and not host.holding and self.linked and ready:
            host.free, host.holding = False, True
            peer.whole = True
            self.feed(peer, core.ReplicaWhole())

    def first_ack(self, host: Host) -> None:
        if host.syncing and host.holding and self.linked and self.other(host).whole:
            self.feed(host, core.SyncDone())

    def kill_vm(self, host: Host) -> None:
        if host.running or host.replica:
            host.running = host.replica = host.whole = False
            self.feed(host, core.VmLost("killed"))

    def tick(self) -> None:
        self.now += core.RETRY + 0.1
        for host in self.hosts.values():
            self.feed(host, core.Tick())

    def check(self) -> None:
        free = [host.name for host in self.hosts.values() if host.free]
        assert len(free) <= 1, f"two speakers: {free}"
        for host in self.hosts.values():
            if host.free and self.other(host).whole:
                peer = self.other(host)
                # A whole replica of this reign beside free speech could take over without what clients saw;
                # one that an older reign left behind is harmless, its term can be granted to nobody.
                assert peer.state is None or peer.state.term < host.spoke_term, "free speech beside a whole replica"

    def settle(self, rounds: int = 200) -> None:
        """Let everything that is under way happen, with a healthy network and arbiter."""
        for _ in range(rounds):
            for host in self.hosts.values():
                while host.todo:
                    self.work(host)
                while host.inbox:
                    self.deliver(host)
                self.first_epoch(host)
                self.first_ack(host)
            if not any(h.todo or h.inbox for h in self.hosts.values()):
                if {h.state.phase for h in self.hosts.values() if h.state} == {Phase.PROTECTED, Phase.STANDBY}:
                    return
                self.tick()
