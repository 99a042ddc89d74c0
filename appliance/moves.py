# SPDX-License-Identifier: GPL-2.0-or-later
"""What is decided on somebody's order, or because a host is not whole: handover, pause, fence. Pure.

A handover, on the host that has the VM:

    PROTECTED --SwitchOver--> HANDOVER --HandedOver--> HANDED --the peer speaks--> WAITING
        ^--------failed----------'                       '--the peer could not--> SOLO

What must never break, and where it is kept:

* One speaker: HANDED is entered with the guard shut, and left for SOLO only when the peer says, in the session in
  which it got the word or under a term not above ours, that it does not run the VM. Silence is no reason.
* Nothing acknowledged is lost: HANDED is entered when the peer has the VM's last epoch and everything that the VM
  sent is out.
"""

from __future__ import annotations

from appliance.core import (
    CLAIMING,
    FORWARDING,
    RETRY,
    SPEAKING,
    Conditions,
    HandOver,
    Hold,
    Inform,
    Peer,
    Phase,
    Role,
    StopSync,
    StopVm,
)
from appliance.turn import Turn


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
    """The peer goes on, or says that it cannot."""
    state = turn.state
    if peer.phase in CLAIMING:
        if peer.phase in SPEAKING and state.retry_at is None:
            turn.again(turn.now + FORWARDING)
    elif peer.phase in (Phase.STANDBY, Phase.ASKING) or state.wanted is not None:
        pass  # it has not read the word yet, or is writing its term
    elif state.in_doubt and peer.term > state.term:
        give_up(turn, f"the peer had taken the VM over under term {peer.term}")
    else:
        turn.claim(peer)


def give_up(turn: Turn, reason: str) -> None:
    """Forget the VM here; the peer says how it goes on."""
    turn.to(Phase.WAITING, reason, StopVm(reason))


def fence(turn: Turn, reason: str) -> None:
    """Out, at once; remembered until it is lifted."""
    turn.to(Phase.FENCED, reason, Hold(), StopSync(reason), StopVm(reason))
    turn.persist(turn.state.highest, Role.FENCED)


def lift(turn: Turn) -> None:
    """Back in. What the peer said so far it said to a fenced host: it is asked again by being told."""
    if turn.state.phase is Phase.FENCED:
        turn.set(peer=None)
        turn.to(Phase.WAITING, "the fence was lifted")
        turn.persist(turn.state.highest, Role.NONE)


def peer_is_off(turn: Turn) -> None:
    """The operator's word stands for the peer's, or for a grant. The term rises by two: the peer may have taken
    the next one before it went."""
    state = turn.state
    if not state.peer_up and state.wanted is None and state.phase in (Phase.ASKING, Phase.HANDED, Phase.WAITING):
        turn.effects.append(Inform(state.term + 2))
        turn.persist(state.term + 2, Role.PRIMARY)
