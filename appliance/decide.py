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
                                            ASKING --> SOLO     ASKING --granted--> TAKING_OVER --> FENCING --> SOLO

FENCING lasts until the lease of a peer that fell silent has run out, by this host's own clock, or until a peer that
handed the VM over yields. `starter.py` has who starts the VM, `resync.py` when the first copy begins, `moves.py` what
is done on order: handover, pause, fence.

What must never break, and where it is kept:

* One speaker: `Speak` is emitted only on entering SOLO, with the term that is on disk; SOLO is entered
  from STARTING (the peer was seen and claims nothing), from TAKING_OVER or FENCING (granted, persisted, and the
  peer's lease is over), from ASKING (granted, persisted), or when the peer itself said that it has no whole
  replica.
* Output commit: leaving SOLO for PROTECTED never releases anything; from SYNCING on, a silent peer may hold a
  whole replica, so the primary asks before it speaks alone.
* Whole epochs only: a takeover starts from STANDBY, which is entered on `ReplicaWhole` alone.
* Remembered: `Persist` comes before every effect that acts on a new term, and the phase that acts is entered
  on `Persisted`.
"""

from __future__ import annotations

from appliance.core import (
    CLAIMING,
    LOST,
    PROTECTING,
    REPLICA,
    RETRY,
    SILENT,
    SPEAKING,
    Ask,
    Effect,
    Event,
    Fence,
    Forced,
    Granted,
    HandedOver,
    HandOverFailed,
    Hold,
    Judged,
    Leaving,
    Lift,
    Peer,
    PeerDown,
    PeerIsOff,
    PeerSays,
    PeerUp,
    Persisted,
    Phase,
    Refused,
    ReplicaReady,
    ReplicaUnfit,
    ReplicaWhole,
    Revoked,
    Role,
    Speak,
    StartReplica,
    StartVm,
    State,
    StopSync,
    StopVm,
    SwitchOver,
    SyncDone,
    SyncFailed,
    TakeOver,
    Tell,
    Tick,
    VmLost,
    VmRunning,
    Want,
)
from appliance.moves import (
    asks,
    fence,
    forced,
    give_up,
    granted,
    hand_over_failed,
    handed_hears,
    handed_loses_sight,
    judged,
    lift,
    next_term,
    peer_is_off,
    switch_over,
)
from appliance.resync import backup_lost, count_loss, solo_hears
from appliance.starter import who_starts
from appliance.turn import Turn

ASK_AGAIN = 0.5
"""Seconds between two questions to the arbiter, and for which a host in doubt looks for its peer before the first: time
to dial each link more than once, and no more, since the VM is silent meanwhile."""
HEAD_START = 0.015
"""Seconds by which a backup asks the arbiter later than the primary may: of two that live, the primary goes on."""


def step(state: State, event: Event, now: float) -> tuple[State, list[Effect]]:
    """What follows from `event` at `now` (monotonic seconds)."""
    turn = Turn(state, now)
    match event:
        case PeerUp():
            turn.set(peer_up=True, peer=None, lifts=0, heard=0, next_granted=False)  # unused grants may go back
            turn.effects.append(Tell())
        case PeerDown(reason, doubtful, speaks_until):
            turn.set(peer_up=False, peer=None, peer_speaks_until=speaks_until)
            _peer_silent(turn, reason)
            if doubtful and turn.state.phase is Phase.ASKING:  # look for the peer before asking for its term
                turn.effects = [effect for effect in turn.effects if not isinstance(effect, Ask)]
                turn.again(now + ASK_AGAIN)
        case PeerSays(peer):
            turn.set(peer_up=True, heard=peer.lifts)
            if peer.lifts != state.heard:
                turn.effects.append(Tell())  # it waits for a word that does not rest on its fence
            if peer.heard == state.lifts:
                turn.set(peer=peer)
                _peer_says(turn, peer)
        case Persisted(term, role):
            _persisted(turn, term, role)
        case VmRunning():
            _vm_running(turn)
        case VmLost(cause):
            _vm_lost(turn, cause)
        case ReplicaReady() if state.phase in (Phase.JOINING, Phase.STANDBY):
            turn.to(Phase.RECEIVING, "ready for the first copy")
        case ReplicaWhole() if state.phase is Phase.RECEIVING:
            turn.to(Phase.STANDBY, "the replica is whole")
        case ReplicaUnfit(cause) if state.phase in REPLICA:
            turn.to(Phase.FAILED, cause, StopVm(cause))
            turn.again(now + RETRY)
        case SyncDone() if state.phase is Phase.SYNCING:
            turn.to(Phase.PROTECTED, "the backup has a whole replica")
            judged(turn, state.conditions)
        case SyncFailed(cause) if state.phase in PROTECTING:
            count_loss(turn)  # what fails at once each time must not be tried without end
            _sync_failed(turn, cause)
        case Granted(term) if asks(state) and term > state.term:
            granted(turn, term)
        case Refused(reason) if asks(state):
            turn.set(reason=reason)
            turn.again(now + ASK_AGAIN)
        case Revoked(reason) if state.phase in (Phase.SOLO, Phase.SYNCING) and not state.peer_up:
            turn.to(Phase.ASKING, reason, Hold(), StopSync(reason), asking_from=state.phase)
            turn.again(now + ASK_AGAIN)
        case Tick():
            _tick(turn)
        case _:
            _ordered(turn, event)
    turn.state.check()
    return turn.state, turn.effects


def _ordered(turn: Turn, event: Event) -> None:
    """What somebody wants; an event that came too late for the phase that wanted it ends here too."""
    match event:
        case Judged(conditions):
            judged(turn, conditions)
            _look_again(turn)
        case SwitchOver(reason):
            switch_over(turn, reason)
        case HandedOver() if turn.state.phase is Phase.HANDOVER:
            turn.to(Phase.HANDED, "handed over; what still arrives is forwarded")
        case HandOverFailed(cause) if turn.state.phase is Phase.HANDOVER:
            hand_over_failed(turn, cause)
        case Want(protection, why):
            turn.set(paused=(*(each for each in turn.state.paused if each != why), *(() if protection else (why,))))
            if protection:
                _look_again(turn)
            elif turn.state.phase in PROTECTING:
                _sync_failed(turn, why)
        case Fence(reason):
            fence(turn, reason)
        case Lift():
            lift(turn)
        case PeerIsOff():
            peer_is_off(turn)
        case Forced(term):
            forced(turn, term)
        case Leaving():
            # FAILED without a retry: a standby that hears it takes over, a primary goes on alone.
            turn.to(Phase.FAILED, "the service is stopping", Hold(), StopSync("stopping"), StopVm("stopping"))


def _look_again(turn: Turn) -> None:
    """What was put off may be due now."""
    if turn.state.phase is Phase.SOLO and turn.state.peer is not None:
        _peer_says(turn, turn.state.peer)


def _peer_says(turn: Turn, peer: Peer) -> None:
    state = turn.state
    if state.role is Role.PRIMARY and peer.phase in CLAIMING and _yields(state, peer):
        give_up(turn, f"the peer is primary under term {peer.term}")
    match turn.state.phase:
        case Phase.WAITING:
            who_starts(turn)
        case Phase.SOLO:
            solo_hears(turn, peer)
        case Phase.SYNCING if peer.phase in LOST:
            backup_lost(turn, f"the backup is {peer.phase}")
        case Phase.PROTECTED | Phase.HANDOVER if peer.phase in (*LOST, Phase.RECEIVING):
            backup_lost(turn, f"the backup lost its replica ({peer.phase})")
            solo_hears(turn, peer)
        case Phase.HANDED | Phase.YIELDED:
            handed_hears(turn, peer)
        case Phase.FENCING if state.needs_word and peer.phase in SILENT and state.wanted is None:
            _vm_running(turn)
        case Phase.ASKING if state.asking_from in SPEAKING:
            _asking_primary_hears(turn, peer)
        case Phase.ASKING | Phase.STANDBY:
            _whole_replica_hears(turn, peer)
        case Phase.JOINING | Phase.RECEIVING if peer.phase not in SPEAKING or peer.term != state.term:
            _drop_replica(turn, f"the peer is {peer.phase} at term {peer.term}")


def _whole_replica_hears(turn: Turn, peer: Peer) -> None:
    """The peer had the VM when the replica became whole: does it still, and may this host have it?"""
    state = turn.state
    if peer.term > state.term:
        _drop_replica(turn, f"the peer is at term {peer.term}")
    elif state.wanted is not None:
        pass  # a term is on its way to disk: the peer hears of it
    elif peer.phase is Phase.ASKING and peer.role is Role.PRIMARY:
        # The stream broke off while the primary lived. It speaks again once this replica is gone.
        _drop_replica(turn, "the primary is back and replication starts anew")
    elif state.phase is Phase.ASKING and peer.phase in SPEAKING:
        turn.to(Phase.STANDBY, "the peer is back")
    elif peer.phase in SILENT or peer.phase is Phase.HANDED:  # its own word: no grant is needed
        turn.to(Phase.ASKING, f"the peer is {peer.phase}", asking_from=Phase.STANDBY)
        turn.set(needs_word=peer.phase is Phase.HANDED)
        turn.persist(state.term + 1, Role.PRIMARY)


def _yields(state: State, peer: Peer) -> bool:
    """Both claim the VM: does this host give way? The higher term wins; of equals, the home host."""
    return (peer.term, peer.home) > (state.term, state.home)


def _asking_primary_hears(turn: Turn, peer: Peer) -> None:
    """Both hosts see each other: once the peer says that it has no replica, this host may speak alone.

    A peer that is still STANDBY hears ASKING and drops its replica first: were this host to speak before that
    and die, the replica would take over without what clients had been told.
    """
    state = turn.state
    if state.wanted is None and peer.phase in (*LOST, Phase.RECEIVING) and peer.term > state.term:
        turn.claim(peer)  # it had taken the VM over, and lost it: its reign was later than this host's
    elif state.wanted is None and peer.phase in (*LOST, Phase.RECEIVING):
        turn.to(Phase.SOLO, "the backup starts anew", Speak(state.term))
        _peer_says(turn, peer)


def _drop_replica(turn: Turn, reason: str) -> None:
    turn.to(Phase.WAITING, reason, StopVm(reason))
    who_starts(turn)


def _peer_silent(turn: Turn, reason: str) -> None:
    state = turn.state
    match state.phase:
        case Phase.SYNCING | Phase.PROTECTED | Phase.HANDOVER:
            count_loss(turn)
            turn.to(Phase.ASKING, reason, Hold(), StopSync(reason), Ask(state.term + 1), asking_from=Phase.PROTECTED)
        case Phase.ASKING if state.asking_from in SPEAKING and state.wanted is None:
            turn.effects.append(Ask(state.term + 1))
        case Phase.STANDBY | Phase.ASKING if state.wanted is None:
            turn.to(Phase.ASKING, reason, asking_from=Phase.STANDBY)
            turn.again(turn.now + HEAD_START)
        case Phase.SOLO:
            turn.set(reason=f"no backup: {reason}")
        case Phase.JOINING | Phase.RECEIVING:
            turn.to(Phase.WAITING, f"the peer went before the replica was whole: {reason}", StopVm(reason))
        case Phase.WAITING:
            turn.set(reason="the peer is not reachable; who was active last is not known")
        case Phase.HANDED | Phase.YIELDED:
            handed_loses_sight(turn, reason)
        case Phase.FENCING if state.needs_word and state.wanted is None:
            turn.effects.append(Ask(next_term(turn)))


def _persisted(turn: Turn, term: int, role: Role) -> None:
    current = turn.state.wanted == (term, role)
    turn.set(term=term, last=role, writing=turn.state.writing - 1, wanted=None if current else turn.state.wanted)
    state = turn.state
    if not current:
        turn.effects.append(Tell())
        who_starts(turn)
        return
    match state.phase:
        case Phase.WAITING if role is Role.PRIMARY:
            turn.to(Phase.STARTING, "starting the VM", StartVm())
        case Phase.WAITING if role is Role.BACKUP and state.peer_up:
            _join(turn, "starting the replica")
        case Phase.WAITING:
            turn.effects.append(Tell())
            who_starts(turn)
        case Phase.FENCED:
            turn.effects.append(Tell())
        case Phase.ASKING if state.asking_from is Phase.STANDBY:
            turn.to(Phase.TAKING_OVER, state.reason, TakeOver())
        case Phase.ASKING:
            turn.to(Phase.SOLO, f"alone: {state.reason}", Speak(term))
        case Phase.SOLO:
            turn.to(Phase.SOLO, f"term raised to {term}", Speak(term))
        case Phase.FENCING:
            turn.set(needs_word=False)
            _vm_running(turn)
        case Phase.HANDED | Phase.YIELDED:
            turn.to(Phase.SOLO, "the VM is back: the peer could not take it over", Speak(term))


def _join(turn: Turn, reason: str) -> None:
    """Begin a replica. What the peer still sends for the one before must not make this one whole: the peer takes that
    for lost once it hears of this one, and speaks alone."""
    turn.set(copy=turn.state.copy + 1)
    turn.to(Phase.JOINING, reason, StartReplica(turn.state.copy))


def _vm_running(turn: Turn) -> None:
    state = turn.state
    taking = state.phase in (Phase.TAKING_OVER, Phase.FENCING)
    if taking and state.needs_word and not (state.peer is not None and state.peer.phase in SILENT):
        turn.to(Phase.FENCING, "silent until the peer yields")
        if not state.peer_up:
            turn.effects.append(Ask(next_term(turn)))
    elif taking and turn.now < state.peer_speaks_until:
        turn.to(Phase.FENCING, "silent until the peer's lease has run out")
        turn.again(state.peer_speaks_until)
    elif taking and state.peer is not None and state.peer.term > state.term:
        turn.to(Phase.FENCING, "silent until a term above the peer's is on disk")
        turn.claim(state.peer)
    elif taking or state.phase is Phase.STARTING:
        _speak_alone(turn)


def _speak_alone(turn: Turn) -> None:
    turn.to(Phase.SOLO, "no backup yet", Speak(turn.state.term))
    _look_again(turn)


def _vm_lost(turn: Turn, cause: str) -> None:
    state = turn.state
    if state.phase in (Phase.WAITING, Phase.FAILED, Phase.FENCED):
        return
    if state.phase in REPLICA - {Phase.JOINING}:
        turn.effects.append(StopVm(cause))
        _join(turn, f"the replica was lost: {cause}")
        return
    # A backup that hears WAITING from the primary of its term takes over at once.
    handed_over = state.phase in (Phase.PROTECTED, Phase.HANDOVER, Phase.HANDED, Phase.YIELDED)
    turn.to(Phase.WAITING if handed_over else Phase.FAILED, cause, Hold(), StopSync(cause), StopVm(cause))
    if not handed_over:
        turn.again(turn.now + RETRY)
    elif state.phase in (Phase.HANDED, Phase.YIELDED):
        who_starts(turn)  # a peer that has the VM already says nothing new


def _sync_failed(turn: Turn, cause: str) -> None:
    """Replication broke on this host: hold, and let the peer drop its replica before going on alone. What the peer
    said so far it may have said before that became whole."""
    turn.set(peer=None)
    turn.to(Phase.ASKING, cause, Hold(), StopSync(cause), asking_from=Phase.PROTECTED)


def _tick(turn: Turn) -> None:
    state = turn.state
    if state.retry_at is None or turn.now < state.retry_at:
        return
    turn.set(retry_at=None)
    if state.phase is Phase.FAILED:
        turn.to(Phase.WAITING, f"trying again after: {state.reason}")
        who_starts(turn)
    elif state.phase is Phase.FENCING and not state.needs_word:
        _vm_running(turn)
    elif state.phase in (Phase.HANDED, Phase.YIELDED) and state.peer is not None and state.peer.phase in SPEAKING:
        give_up(turn, "the peer has the VM")
        who_starts(turn)
    elif state.phase is Phase.PROTECTED:
        judged(turn, state.conditions)
    elif asks(state) and not state.peer_up:
        turn.effects.append(Ask(next_term(turn)))
    elif state.peer is not None:
        _peer_says(turn, state.peer)
