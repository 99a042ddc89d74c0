# SPDX-License-Identifier: GPL-2.0-or-later
"""What is decided about: the state of one protected VM on one host, the events it hears, the effects it orders.

All of it is data. `decide.py` holds the rules, `protection.py` performs the effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

RETRY = 2.0
"""Seconds between two tries after a failure."""
BY_OPERATOR = "protection is paused by the operator"


class Role(StrEnum):
    """What a host is for one VM, as remembered on disk."""

    NONE = "none"
    PRIMARY = "primary"
    BACKUP = "backup"
    FENCED = "fenced"


class Phase(StrEnum):
    """Where a host stands with one VM."""

    WAITING = "waiting"
    STARTING = "starting"
    SOLO = "solo"
    SYNCING = "syncing"
    PROTECTED = "protected"
    JOINING = "joining"
    RECEIVING = "receiving"
    STANDBY = "standby"
    ASKING = "asking"
    TAKING_OVER = "taking-over"
    FENCING = "fencing"
    HANDOVER = "handover"
    HANDED = "handed"
    YIELDED = "yielded"
    FENCED = "fenced"
    FAILED = "failed"


SPEAKING = frozenset({Phase.SOLO, Phase.SYNCING, Phase.PROTECTED})
CLAIMING = SPEAKING | {Phase.TAKING_OVER, Phase.FENCING, Phase.HANDOVER}
RUNNING = CLAIMING | {Phase.STARTING}
SILENT = frozenset({Phase.WAITING, Phase.STARTING, Phase.FAILED, Phase.YIELDED, Phase.FENCED})
"""Phases in which a host says by its own word that it does not speak and will not without the other."""
PROTECTING = (Phase.SYNCING, Phase.PROTECTED, Phase.HANDOVER)
LOST = (Phase.WAITING, Phase.JOINING, Phase.FAILED, Phase.FENCED)
"""Phases of a host that has no replica, nor the VM."""
REPLICA = frozenset({Phase.JOINING, Phase.RECEIVING, Phase.STANDBY})


@dataclass(frozen=True)
class Peer:
    """What the peer last said of this VM. `last`: the role it remembers; `role`: the one it plays; `settled`: it is not
    just writing another term; `copy`: the number of its replica; `lifts`, `heard`: as in its State."""

    phase: Phase
    term: int
    last: Role
    role: Role
    home: bool
    settled: bool
    copy: int = 0
    lifts: int = 0
    heard: int = 0


@dataclass(frozen=True)
class Conditions:
    """How whole both hosts are for this VM. `unfit`: why the peer cannot carry it; `move`: why it should go to the
    peer; both empty when there is no reason. `shunt`: its traffic must go through the peer's uplink."""

    unfit: str = ""
    move: str = ""
    shunt: bool = False


@dataclass(frozen=True)
class State:
    """Everything the decisions rest on. `term` and `last` are what is on disk."""

    host: str
    home: bool
    term: int = 0
    last: Role = Role.NONE
    phase: Phase = Phase.WAITING
    reason: str = "the peer has not been seen yet"
    peer_up: bool = False
    peer: Peer | None = None
    asking_from: Phase | None = None
    wanted: tuple[int, Role] | None = None
    """Acted on once it is on disk."""
    writing: int = 0  # terms on their way to disk, wanted or not
    highest: int = 0  # the highest term that is on disk or on its way there
    retry_at: float | None = None
    peer_speaks_until: float = 0.0  # monotonic seconds: the end of the lease of a peer that fell silent
    paused: tuple[str, ...] = ()
    """Why the VM is not to be protected now; empty: it is."""
    conditions: Conditions = Conditions()
    needs_word: bool = False
    """Taken over from a peer that handed the VM over: it may speak when the peer yields, or by a grant."""
    next_granted: bool = False
    """HANDED: the arbiter gave this host the term that the peer takes if it has not heard of the handover."""
    forcing: bool = False
    """The operator vouched that the peer is off; which term this host takes is being asked."""
    in_doubt: bool = False
    """The session ended after the VM was yielded: whether the peer went on is not known."""
    copy: int = 0
    """The number of the replica here, of those begun since this host started: what is meant for another is refused."""
    lifts: int = 0
    """How often the fence was lifted in this session: what the peer says before it knows, it says to a fenced host."""
    heard: int = 0  # the peer's lifts
    losses: tuple[float, ...] = ()
    """When the backup was lost lately, monotonic seconds."""
    backoff: float = 30.0
    """The longest delay of a first copy to a backup that flaps, seconds."""

    @property
    def role(self) -> Role:
        """The role this host plays now."""
        if self.phase in RUNNING or self.asking_from in SPEAKING:
            return Role.PRIMARY
        return Role.BACKUP if self.phase in REPLICA or self.asking_from is Phase.STANDBY else Role.NONE

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself."""
        assert (self.phase is Phase.ASKING) == (self.asking_from is not None), self
        assert self.phase not in SPEAKING or self.last is Role.PRIMARY, self
        assert self.phase is not Phase.PROTECTED or self.peer_up, self
        assert self.wanted is None or self.wanted[0] >= self.term, self


# --- events -----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class PeerUp:
    """A link to the peer carries messages."""


@dataclass(frozen=True)
class PeerDown:
    """No link to the peer is left. `doubtful`: not for want of a sign of life; this host ended the session, or
    stood still itself lately and the peer may have taken over meanwhile."""

    reason: str
    doubtful: bool = False
    speaks_until: float = 0.0
    """Monotonic seconds: until then a peer that lives may still speak."""


@dataclass(frozen=True)
class PeerSays:
    """The peer told its state."""

    peer: Peer


@dataclass(frozen=True)
class Persisted:
    """Term and role are on disk."""

    term: int
    role: Role


@dataclass(frozen=True)
class VmRunning:
    """The VM runs on this host."""


@dataclass(frozen=True)
class VmLost:
    """QEMU is gone, or never came up."""

    cause: str


@dataclass(frozen=True)
class ReplicaReady:
    """QEMU waits, an empty replica can receive. In STANDBY: the copy began anew."""


@dataclass(frozen=True)
class ReplicaWhole:
    """The first epoch of the peer's term arrived whole."""


@dataclass(frozen=True)
class ReplicaUnfit:
    """This host cannot hold a replica of that VM: the two are not configured alike."""

    cause: str


@dataclass(frozen=True)
class SyncDone:
    """The backup acknowledged the first epoch."""


@dataclass(frozen=True)
class SyncFailed:
    """Replication ended for a cause on this host."""

    cause: str


@dataclass(frozen=True)
class Granted:
    """The arbiter gives this host the term."""

    term: int


@dataclass(frozen=True)
class Refused:
    """The arbiter does not."""

    reason: str


@dataclass(frozen=True)
class Revoked:
    """The arbiter says that this host's term is over."""

    reason: str


@dataclass(frozen=True)
class Judged:
    """The hosts' health or resources changed."""

    conditions: Conditions


@dataclass(frozen=True)
class SwitchOver:
    """The VM is to go to the peer, in good order."""

    reason: str


@dataclass(frozen=True)
class HandedOver:
    """The VM is paused for good, its last epoch is committed, its output is out, the guard is shut."""


@dataclass(frozen=True)
class HandOverFailed:
    """The VM runs on here, protected as before."""

    cause: str


@dataclass(frozen=True)
class Want:
    """The VM is to be protected, or not for as long as there is this reason."""

    protection: bool
    why: str = BY_OPERATOR


@dataclass(frozen=True)
class Fence:
    """This host is to stay out of this VM until it is told otherwise."""

    reason: str


@dataclass(frozen=True)
class Lift:
    """The fence is over."""


@dataclass(frozen=True)
class PeerIsOff:
    """The operator vouches that the peer, which is not reachable, is off and stays silent."""


@dataclass(frozen=True)
class Forced:
    """The term that this host takes by the operator's word."""

    term: int


@dataclass(frozen=True)
class Leaving:
    """The service on this host is stopping in good order."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (PeerUp | PeerDown | PeerSays | Persisted | VmRunning | VmLost | ReplicaReady | ReplicaWhole | ReplicaUnfit
         | SyncDone | SyncFailed | Granted | Refused | Revoked | Judged | SwitchOver | HandedOver | HandOverFailed
         | Want | Fence | Lift | PeerIsOff | Forced | Leaving | Tick)


# --- effects ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Persist:
    """Write term and role, fsync, then report Persisted."""

    term: int
    role: Role


@dataclass(frozen=True)
class StartVm:
    """Boot the VM."""


@dataclass(frozen=True)
class StartReplica:
    """Start a waiting QEMU and an empty replica, which takes the first copy of this number."""

    copy: int


@dataclass(frozen=True)
class TakeOver:
    """Finish applying, load the device state, run."""


@dataclass(frozen=True)
class HandOver:
    """Pause the VM, commit a last epoch, let its output go, shut the guard; report HandedOver."""


@dataclass(frozen=True)
class Speak:
    """Let the VM run, open the gate under this term, announce, release output as it comes: rightfully solo."""

    term: int


@dataclass(frozen=True)
class Hold:
    """Release nothing any more."""


@dataclass(frozen=True)
class StartSync:
    """Copy the VM to the peer, if its replica is still the one of this number, then keep it protected."""

    copy: int


@dataclass(frozen=True)
class StopSync:
    """Stop replicating; epochs in flight stay held."""

    reason: str


@dataclass(frozen=True)
class StopVm:
    """Shut the gate, drop what is held, end QEMU, forget the replica."""

    reason: str


@dataclass(frozen=True)
class Ask:
    """Ask the arbiter for this term."""

    term: int


@dataclass(frozen=True)
class Force:
    """Take, by the operator's word, the lowest term from this one on that the arbiter has seen nobody have; report
    Forced. An arbiter that does not answer is not waited for: the operator's word stands alone then."""

    term: int


@dataclass(frozen=True)
class Wake:
    """Tick at this moment (monotonic seconds), not only at the next regular one."""

    at: float


@dataclass(frozen=True)
class Tell:
    """Tell the peer this host's state."""


Effect = (Persist | StartVm | StartReplica | TakeOver | HandOver | Speak | Hold | StartSync | StopSync | StopVm | Ask
          | Force | Wake | Tell)
