# SPDX-License-Identifier: GPL-2.0-or-later
"""What is decided on somebody's order, or because a host is not whole: handover, pause, fence. Pure.

A handover, on the host that has the VM, and on the one that gets it:

    PROTECTED --SwitchOver--> HANDOVER --HandedOver--> HANDED --FENCING--> YIELDED --SOLO--> WAITING
    STANDBY --------------------------------HANDED--> TAKING_OVER --> FENCING --YIELDED--> SOLO

HANDED is the word that the other may load the VM, YIELDED the word that it may speak. Until then either can be the
one that goes on: when they lose sight of each other in between, both ask the arbiter, in the end for the same term.

What must never break, and where it is kept:

* One speaker: HANDED is entered with the guard shut, and left for SOLO only by a grant, or when the peer says that
  it does not have the VM. YIELDED is left for SOLO only when the peer says so within the session that began the
  handover, or under a term not above ours.
* Nothing acknowledged is lost: HANDED is entered when the peer has the VM's last epoch and everything that the VM
  sent is out. Who takes the VM over from HANDED says nothing before the other can speak no more.
"""

from __future__ import annotations

from appliance.core import (
    CLAIMING,
    RETRY,
    SPEAKING,
    Ask,
    Conditions,
    Force,
    HandOver,
    Hold,
    Peer,
    Phase,
    Role,
    State,
    StopSync,
    StopVm,
)
from appliance.turn import Turn

FORWARDING = 0.4
"""Seconds for which a host that handed the VM over still forwards what reaches it, once the other speaks."""
WITHOUT_WORD = (Phase.ASKING, Phase.FENCING, Phase.HANDED, Phase.YIELDED, Phase.WAITING)
"""Phases in which a host may be stuck for want of the peer's word or a grant."""


def switch_over(turn: Turn, reason: str) -> None:
    """The VM goes to the peer, if the peer holds a whole replica and can carry it."""
    if turn.state.phase is Phase.PROTECTED and not turn.state.conditions.unfit:
        turn.to(Phase.HANDOVER, reason, HandOver())


def judged(turn: Turn, conditions: Conditions) -> None:
    """A host that is better off gets the VM."""
    turn.set(conditions=conditions)
    if conditions.move and turn.state.retry_at is None:
        switch_over(turn, conditions.move)


def hand_over_failed(turn: Turn, cause: str) -> None:
    turn.to(Phase.PROTECTED, f"the handover failed: {cause}")
    turn.again(turn.now + 5 * RETRY)


def handed_hears(turn: Turn, peer: Peer) -> None:
    """HANDED or YIELDED: the peer goes on, or says that it cannot."""
    state = turn.state
    if state.wanted is None and peer.phase is Phase.ASKING and peer.role is Role.PRIMARY and peer.term > state.term:
        give_up(turn, f"the peer had taken the VM over under term {peer.term}")
    elif state.wanted is not None or peer.phase in (Phase.STANDBY, Phase.ASKING):
        pass  # a term is on its way to disk, here or there
    elif peer.phase in CLAIMING:
        if peer.phase is Phase.FENCING and state.phase is Phase.HANDED:
            turn.to(Phase.YIELDED, "the VM is the peer's; what still arrives here is forwarded")
        elif peer.phase in SPEAKING and turn.state.retry_at is None:
            turn.again(turn.now + FORWARDING)
    elif state.in_doubt and peer.term > state.term:
        give_up(turn, f"the peer had taken the VM over under term {peer.term}")
    else:
        turn.claim(peer)


def handed_loses_sight(turn: Turn, reason: str) -> None:
    """HANDED or YIELDED, and the peer is silent."""
    if turn.state.phase is Phase.YIELDED:
        turn.set(in_doubt=True, reason=f"yielded to a peer that is not reachable now: {reason}")
    elif turn.state.wanted is None:
        turn.set(reason=reason)
        turn.effects.append(Ask(next_term(turn)))


def asks(state: State) -> bool:
    """Does this host want the arbiter's grant? Once it sees its peer, words decide."""
    return state.wanted is None and (state.phase is Phase.ASKING or not state.peer_up and (
        state.phase is Phase.HANDED or state.phase is Phase.FENCING and state.needs_word))


def next_term(turn: Turn) -> int:
    """What to ask the arbiter for."""
    return turn.state.term + (2 if turn.state.next_granted else 1)


def granted(turn: Turn, term: int) -> None:
    """The arbiter's word. From HANDED it takes two: a peer that did not hear of the handover asks for the next term
    too, one that did takes that term without asking and asks for the one above it."""
    if turn.state.phase is not Phase.HANDED:
        turn.persist(term, Role.PRIMARY)
    elif term == turn.state.term + 1:  # perhaps once more: the question was asked twice
        turn.set(next_granted=True)
        turn.effects.append(Ask(next_term(turn)))
    elif turn.state.next_granted:
        turn.persist(term, Role.PRIMARY)


def give_up(turn: Turn, reason: str) -> None:
    """Forget the VM here; the peer says how it goes on."""
    turn.to(Phase.WAITING, reason, StopVm(reason))


def fence(turn: Turn, reason: str) -> None:
    """Out, at once; remembered until it is lifted."""
    turn.to(Phase.FENCED, reason, Hold(), StopSync(reason), StopVm(reason))
    turn.persist(turn.state.highest, Role.FENCED)


def lift(turn: Turn) -> None:
    """Back in. What the peer said so far it said to a fenced host, whose place it may be taking: only what it says
    once it has heard of this counts."""
    if turn.state.phase is Phase.FENCED:
        turn.set(peer=None, lifts=turn.state.lifts + 1)
        turn.to(Phase.WAITING, "the fence was lifted")
        turn.persist(turn.state.highest, Role.NONE)


def peer_is_off(turn: Turn) -> None:
    """The operator's word stands for the peer's, or for a grant. The term rises by two at least: the peer may have
    taken the next one before it went. How high it really rose an arbiter may know."""
    if _lacks_a_word(turn.state):
        turn.set(forcing=True)
        turn.effects.append(Force(turn.state.term + 2))


def forced(turn: Turn, term: int) -> None:
    """The term that the operator's word gives."""
    if _lacks_a_word(turn.state) and turn.state.forcing and term > turn.state.term:
        turn.persist(term, Role.PRIMARY)
    turn.set(forcing=False)


def _lacks_a_word(state: State) -> bool:
    return not state.peer_up and state.wanted is None and state.phase in WITHOUT_WORD
