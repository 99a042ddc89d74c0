# SPDX-License-Identifier: GPL-2.0-or-later
"""What is decided about: the state of one protected VM on one host, the events it hears, the effects it orders.

All of it is data. `decide.py` holds the rules, `protection.py` performs the effects.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

RETRY = 2.0
"""Seconds between two tries after a failure or a refused grant."""


class Role(StrEnum):
    """What a host is for one VM, as remembered on disk."""

    NONE = "none"
    PRIMARY = "primary"
    BACKUP = "backup"


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
    FAILED = "failed"


SPEAKING = frozenset({Phase.SOLO, Phase.SYNCING, Phase.PROTECTED})
RUNNING = SPEAKING | {Phase.STARTING}
REPLICA = frozenset({Phase.JOINING, Phase.RECEIVING, Phase.STANDBY})


@dataclass(frozen=True)
class Peer:
    """What the peer last said of this VM. `last`: the role it remembers; `role`: the one it plays; `settled`: it
    is not just writing another term."""

    phase: Phase
    term: int
    last: Role
    role: Role
    home: bool
    settled: bool


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
    writing: int = 0
    """Terms on their way to disk, wanted or not."""
    retry_at: float | None = None

    @property
    def role(self) -> Role:
        """The role this host plays now."""
        if self.phase in RUNNING or self.phase is Phase.TAKING_OVER or self.asking_from in SPEAKING:
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
class Leaving:
    """The service on this host is stopping in good order."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = (PeerUp | PeerDown | PeerSays | Persisted | VmRunning | VmLost | ReplicaReady | ReplicaWhole | ReplicaUnfit
         | SyncDone | SyncFailed | Granted | Refused | Leaving | Tick)


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
    """Start a waiting QEMU and an empty replica."""


@dataclass(frozen=True)
class TakeOver:
    """Finish applying, load the device state, run."""


@dataclass(frozen=True)
class Speak:
    """Open the gate under this term, announce, release output as it comes: rightfully solo."""

    term: int


@dataclass(frozen=True)
class Hold:
    """Release nothing any more."""


@dataclass(frozen=True)
class StartSync:
    """Copy the VM to the peer, then keep it protected."""


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
class Tell:
    """Tell the peer this host's state."""


Effect = (Persist | StartVm | StartReplica | TakeOver | Speak | Hold | StartSync | StopSync | StopVm | Ask
          | Tell)
