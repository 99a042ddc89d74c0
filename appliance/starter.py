# SPDX-License-Identifier: GPL-2.0-or-later
"""Who starts the VM when two hosts meet that do not run it. Pure."""

from __future__ import annotations

from appliance.core import RUNNING, SPEAKING, Peer, Phase, Role, State
from appliance.turn import Turn


def who_starts(turn: Turn) -> None:
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
    turn.set(wanted=None)
    if isinstance(choice, str):
        turn.set(reason=choice)
    elif not state.writing:
        turn.persist(*choice)


def _choose(state: State, peer: Peer) -> tuple[int, Role] | str:
    """Term and role to take, or why to wait."""
    if peer.phase in RUNNING:
        if peer.term < state.term:
            return f"the peer runs the VM under the older term {peer.term}: this host knows of term {state.term}"
        return (peer.term, Role.BACKUP) if peer.phase in SPEAKING else f"the peer has the VM ({peer.phase})"
    if peer.phase is Phase.FENCED and peer.settled:
        return max(state.term, peer.term) + 1, Role.PRIMARY
    if peer.phase is not Phase.WAITING:
        return f"the peer is {peer.phase}"
    if not peer.settled:
        return "the peer is still writing its term"
    mine = (state.term, state.last is Role.PRIMARY, state.home)
    if mine > (peer.term, peer.last is Role.PRIMARY, peer.home):
        return max(state.term, peer.term) + 1, Role.PRIMARY
    return "the peer was active last, it starts the VM"
