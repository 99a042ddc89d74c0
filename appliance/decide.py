# SPDX-License-Identifier: GPL-2.0-or-later
"""The decisions about one protected VM: `step(state, event, now) -> (state, effects)`, pure.

No I/O, no clock, no asyncio. `protection.py` performs the effects and reports what came of them as events.

How a VM on one host moves through its phases (primary left, backup right):

    WAITING --StartVm--> STARTING --> SOLO <----------+   WAITING --StartReplica--> JOINING
                                       | peer ready   |                                | ReplicaReady
                                       v              |                                v
                                    SYNCING --> PROTECTED      STANDBY <--whole-- RECEIVING
                                       |              |           |
                                       +-peer silent--+           | peer silent, or its own word
                                              v                   v
                                            ASKING --> SOLO     ASKING --granted--> TAKING_OVER --> SOLO

What must never break, and where it is kept:

* One speaker: `Speak` is emitted only on entering SOLO, with the term that is on disk; SOLO is entered
  from STARTING (the peer was seen and claims nothing), from TAKING_OVER or ASKING (granted, persisted), or
  when the peer itself said that it has no whole replica.
* Output commit: leaving SOLO for PROTECTED never releases anything; from SYNCING on, a silent peer may hold a
  whole replica, so the primary asks before it speaks alone.
* Whole epochs only: a takeover starts from STANDBY, which is entered on `ReplicaWhole` alone.
* Remembered: `Persist` comes before every effect that acts on a new term, and the phase that acts is entered
  on `Persisted`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from appliance.core import (
    REPLICA,
    RETRY,
    RUNNING,
    SPEAKING,
    Ask,
    Effect,
    Event,
    Granted,
    Hold,
    Leaving,
    Peer,
    PeerDown,
    PeerSays,
    PeerUp,
    Persist,
    Persisted,
    Phase,
    Refused,
    ReplicaReady,
    ReplicaUnfit,
    ReplicaWhole,
    Role,
    Speak,
    StartReplica,
    StartSync,
    StartVm,
    State,
    StopSync,
    StopVm,
    SyncDone,
    SyncFailed,
    TakeOver,
    Tell,
    Tick,
    VmLost,
    VmRunning,
)


@dataclass
class _Turn:
    """A state under change and the effects so far."""

    state: State
    effects: list[Effect] = field(default_factory=list)

    def to(self, phase: Phase, reason: str, *effects: Effect, asking_from: Phase | None = None) -> None:
        """Enter a phase. A term still on its way to disk for the phase before is acted on no more."""
        self.state = replace(self.state, phase=phase, reason=reason, asking_from=asking_from, retry_at=None,
                             wanted=None)
        self.effects += [*effects, Tell()]

    def persist(self, term: int, role: Role) -> None:
        self.state = replace(self.state, wanted=(term, role), writing=self.state.writing + 1)
        self.effects.append(Persist(term, role))


def step(state: State, event: Event, now: float) -> tuple[State, list[Effect]]:
    """What follows from `event` at `now` (monotonic seconds)."""
    turn = _Turn(state)
    match event:
        case PeerUp():
            turn.state = replace(state, peer_up=True, peer=None)
            turn.effects.append(Tell())
        case PeerDown(reason, doubtful):
            turn.state = replace(state, peer_up=False, peer=None)
            _peer_silent(turn, reason)
            if doubtful and turn.state.phase is Phase.ASKING:  # look for the peer before asking for its term
                turn.effects = [effect for effect in turn.effects if not isinstance(effect, Ask)]
                turn.state = replace(turn.state, retry_at=now + RETRY)
        case PeerSays(peer):
            turn.state = replace(state, peer_up=True, peer=peer)
            _peer_says(turn, peer)
        case Persisted(term, role):
            _persisted(turn, term, role)
        case VmRunning():
            _vm_running(turn)
        case VmLost(cause):
            _vm_lost(turn, cause, now)
        case ReplicaReady() if state.phase in (Phase.JOINING, Phase.STANDBY):
            turn.to(Phase.RECEIVING, "ready for the first copy")
        case ReplicaWhole() if state.phase is Phase.RECEIVING:
            turn.to(Phase.STANDBY, "the replica is whole")
        case ReplicaUnfit(cause) if state.phase in REPLICA:
            turn.to(Phase.FAILED, cause, StopVm(cause))
            turn.state = replace(turn.state, retry_at=now + RETRY)
        case SyncDone() if state.phase is Phase.SYNCING:
            turn.to(Phase.PROTECTED, "the backup has a whole replica")
        case SyncFailed(cause) if state.phase in (Phase.SYNCING, Phase.PROTECTED):
            _sync_failed(turn, cause)
        case Granted(term) if state.phase is Phase.ASKING and term > state.term:
            turn.persist(term, Role.PRIMARY)
        case Refused(reason) if state.phase is Phase.ASKING:
            turn.state = replace(state, reason=reason, retry_at=now + RETRY)
        case Leaving():
            # FAILED without a retry: a standby that hears it takes over, a primary goes on alone.
            turn.to(Phase.FAILED, "the service is stopping", Hold(), StopSync("stopping"), StopVm("stopping"))
        case Tick():
            _tick(turn, now)
        case _:
            pass  # an event that came too late for the phase that wanted it
    turn.state.check()
    return turn.state, turn.effects


def _decide(turn: _Turn) -> None:
    """In WAITING: who starts the VM, now that the peer's state is known?

    What a host tells in WAITING is a promise: the peer acts on it. So nobody decides, and nobody relies on the
    other, while a term is still on its way to disk.
    """
    state, peer = turn.state, turn.state.peer
    if state.phase is not Phase.WAITING or peer is None:
        return
    choice = _choose(state, peer)
    if choice == state.wanted:
        return
    turn.state = replace(state, wanted=None)
    if isinstance(choice, str):
        turn.state = replace(turn.state, reason=choice)
    elif not state.writing:
        turn.persist(*choice)


def _choose(state: State, peer: Peer) -> tuple[int, Role] | str:
    """Term and role to take, or why to wait."""
    if peer.phase in RUNNING | {Phase.TAKING_OVER}:
        if peer.term < state.term:
            return f"the peer runs the VM under the older term {peer.term}: this host knows of term {state.term}"
        return (peer.term, Role.BACKUP) if peer.phase in SPEAKING else "the peer is bringing the VM up"
    if peer.phase is not Phase.WAITING:
        return f"the peer is {peer.phase}"
    if not peer.settled:
        return "the peer is still writing its term"
    mine = (state.term, state.last is Role.PRIMARY, state.home)
    if mine > (peer.term, peer.last is Role.PRIMARY, peer.home):
        return max(state.term, peer.term) + 1, Role.PRIMARY
    return "the peer was active last, it starts the VM"


def _peer_says(turn: _Turn, peer: Peer) -> None:
    state = turn.state
    claims = peer.phase in SPEAKING | {Phase.TAKING_OVER}
    if state.role is Role.PRIMARY and claims and _yields(state, peer):
        turn.to(Phase.WAITING, f"the peer is primary under term {peer.term}",
                StopVm(f"the peer is primary under term {peer.term}"))
        _decide(turn)
        return
    match state.phase:
        case Phase.WAITING:
            _decide(turn)
        case Phase.SOLO if peer.phase is Phase.RECEIVING and peer.term == state.term:
            turn.to(Phase.SYNCING, "the first copy is under way", StartSync())
        case Phase.SOLO if peer.term > state.term and not claims and state.wanted is None:
            turn.persist(peer.term + 1, Role.PRIMARY)  # a reign the peer began and lost: rise above it
        case Phase.SYNCING if peer.phase in (Phase.WAITING, Phase.JOINING, Phase.FAILED):
            turn.to(Phase.SOLO, f"the backup is {peer.phase}", StopSync("the backup started anew"),
                    Speak(state.term))
        case Phase.PROTECTED if peer.phase in (Phase.WAITING, Phase.JOINING, Phase.RECEIVING, Phase.FAILED):
            turn.to(Phase.SOLO, f"the backup lost its replica ({peer.phase})",
                    StopSync("the backup lost its replica"), Speak(state.term))
            _peer_says(turn, peer)
        case Phase.ASKING if state.asking_from in SPEAKING:
            _asking_primary_hears(turn, peer)
        case Phase.ASKING | Phase.STANDBY if peer.term > state.term:
            _drop_replica(turn, f"the peer is at term {peer.term}")
        case Phase.STANDBY | Phase.ASKING if peer.phase is Phase.ASKING and peer.role is Role.PRIMARY:
            # The stream broke off while the primary lived. It speaks again once this replica is gone.
            if state.wanted is None:
                _drop_replica(turn, "the primary is back and replication starts anew")
        case Phase.ASKING if peer.phase in SPEAKING and state.wanted is None:
            turn.to(Phase.STANDBY, "the peer is back")
        case Phase.STANDBY | Phase.ASKING if peer.phase in (Phase.WAITING, Phase.STARTING, Phase.FAILED):
            if state.wanted is None:  # its own word: no grant is needed
                turn.to(Phase.ASKING, f"the peer is {peer.phase}", asking_from=Phase.STANDBY)
                turn.persist(state.term + 1, Role.PRIMARY)
        case Phase.JOINING | Phase.RECEIVING if peer.phase not in SPEAKING or peer.term != state.term:
            _drop_replica(turn, f"the peer is {peer.phase} at term {peer.term}")


def _yields(state: State, peer: Peer) -> bool:
    """Both claim the VM: does this host give way? The higher term wins; of equals, the home host."""
    return (peer.term, peer.home) > (state.term, state.home)


def _asking_primary_hears(turn: _Turn, peer: Peer) -> None:
    """Both hosts see each other: once the peer says that it has no replica, this host may speak alone.

    A peer that is still STANDBY hears ASKING and drops its replica first: were this host to speak before that
    and die, the replica would take over without what clients had been told.
    """
    state = turn.state
    if state.wanted is None and peer.phase in (Phase.RECEIVING, Phase.JOINING, Phase.WAITING, Phase.FAILED):
        turn.to(Phase.SOLO, "the backup starts anew", Speak(state.term))
        _peer_says(turn, peer)


def _drop_replica(turn: _Turn, reason: str) -> None:
    turn.to(Phase.WAITING, reason, StopVm(reason))
    _decide(turn)


def _peer_silent(turn: _Turn, reason: str) -> None:
    state = turn.state
    match state.phase:
        case Phase.SYNCING | Phase.PROTECTED:
            turn.to(Phase.ASKING, reason, Hold(), StopSync(reason), Ask(state.term + 1),
                    asking_from=state.phase)
        case Phase.STANDBY:
            turn.to(Phase.ASKING, reason, Ask(state.term + 1), asking_from=state.phase)
        case Phase.JOINING | Phase.RECEIVING:
            turn.to(Phase.WAITING, f"the peer went before the replica was whole: {reason}", StopVm(reason))
        case Phase.WAITING:
            turn.state = replace(state, reason="the peer is not reachable; who was active last is not known")


def _persisted(turn: _Turn, term: int, role: Role) -> None:
    current = turn.state.wanted == (term, role)
    turn.state = state = replace(turn.state, term=term, last=role, writing=turn.state.writing - 1,
                                 wanted=None if current else turn.state.wanted)
    if not current:
        turn.effects.append(Tell())
        _decide(turn)
        return
    match state.phase:
        case Phase.WAITING if role is Role.PRIMARY:
            turn.to(Phase.STARTING, "starting the VM", StartVm())
        case Phase.WAITING if role is Role.BACKUP and state.peer_up:
            turn.to(Phase.JOINING, "starting the replica", StartReplica())
        case Phase.ASKING if state.asking_from is Phase.STANDBY:
            turn.to(Phase.TAKING_OVER, state.reason, TakeOver())
        case Phase.ASKING:
            turn.to(Phase.SOLO, f"alone: {state.reason}", Speak(term))
        case Phase.SOLO:
            turn.to(Phase.SOLO, f"term raised to {term}", Speak(term))


def _vm_running(turn: _Turn) -> None:
    state = turn.state
    if state.phase in (Phase.STARTING, Phase.TAKING_OVER):
        turn.to(Phase.SOLO, "no backup yet", Speak(state.term))
        if state.peer_up and state.peer is not None:
            _peer_says(turn, state.peer)


def _vm_lost(turn: _Turn, cause: str, now: float) -> None:
    state = turn.state
    if state.phase in (Phase.WAITING, Phase.FAILED):
        return
    if state.phase in REPLICA:
        if state.phase is Phase.JOINING:
            turn.to(Phase.FAILED, cause, StopVm(cause))
            turn.state = replace(turn.state, retry_at=now + RETRY)
        else:
            turn.to(Phase.JOINING, f"the replica's QEMU died: {cause}", StopVm(cause), StartReplica())
        return
    # A backup that hears WAITING from the primary of its term takes over at once.
    handed_over = state.phase is Phase.PROTECTED
    turn.to(Phase.WAITING if handed_over else Phase.FAILED, cause, Hold(), StopSync(cause), StopVm(cause))
    if not handed_over:
        turn.state = replace(turn.state, retry_at=now + RETRY)


def _sync_failed(turn: _Turn, cause: str) -> None:
    """Replication broke on this host: hold, and let the peer drop its replica before going on alone."""
    turn.to(Phase.ASKING, cause, Hold(), StopSync(cause), asking_from=turn.state.phase)


def _tick(turn: _Turn, now: float) -> None:
    state = turn.state
    if state.retry_at is None or now < state.retry_at:
        return
    turn.state = state = replace(state, retry_at=None)
    if state.phase is Phase.FAILED:
        turn.to(Phase.WAITING, f"trying again after: {state.reason}")
        _decide(turn)
    elif state.phase is Phase.ASKING and not state.peer_up:
        turn.effects.append(Ask(state.term + 1))
    elif state.peer is not None:
        _peer_says(turn, state.peer)
