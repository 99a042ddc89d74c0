# SPDX-License-Identifier: GPL-2.0-or-later
"""When a backup gets its first copy, and what its loss means to the primary. Pure.

A backup that is lost more than FREE_LOSSES times within FLAPPING seconds waits longer for each next copy: copying
costs the VM speed, and a host that flaps would have it copied without end.
"""

from __future__ import annotations

from appliance.core import CLAIMING, Peer, Phase, Speak, StartSync, State, StopSync
from appliance.turn import Turn

FLAPPING = 60.0
"""Seconds within which a backup that is lost again counts as flapping."""
FREE_LOSSES = 3
"""Losses of the backup within FLAPPING seconds that delay the next first copy by nothing."""


def solo_hears(turn: Turn, peer: Peer) -> None:
    """A peer that is ready gets the first copy, unless something speaks against it."""
    state = turn.state
    if peer.phase is Phase.RECEIVING and peer.term == state.term:
        due = _copy_due(state)
        if state.paused:
            turn.set(reason=state.paused[0])
        elif state.conditions.unfit:
            turn.set(reason=f"the peer cannot carry the VM: {state.conditions.unfit}")
        elif turn.now < due:
            turn.set(reason=f"the backup was lost {len(state.losses)} times lately: the next copy begins in "
                            f"{due - turn.now:.0f} s")
            turn.again(due)
        else:
            turn.to(Phase.SYNCING, "the first copy is under way", StartSync(peer.copy))
    elif peer.term > state.term and peer.phase not in CLAIMING and state.wanted is None:
        turn.claim(peer)  # a reign the peer began and lost: rise above it
    else:
        turn.set(reason=f"no backup yet: the peer is {peer.phase}")


def _copy_due(state: State) -> float:
    """When a backup that flaps gets its next first copy: 2, 4, 8 s after it was lost, up to `backoff`."""
    extra = len(state.losses) - FREE_LOSSES
    return state.losses[-1] + min(2.0**extra, state.backoff) if extra > 0 else 0.0


def count_loss(turn: Turn) -> None:
    """One time more that the backup went."""
    recent = tuple(at for at in turn.state.losses if turn.now - at < FLAPPING)
    turn.set(losses=(*recent, turn.now)[-16:])


def backup_lost(turn: Turn, reason: str) -> None:
    """By its own word the peer has no whole replica."""
    count_loss(turn)
    turn.to(Phase.SOLO, reason, StopSync(reason), Speak(turn.state.term))
