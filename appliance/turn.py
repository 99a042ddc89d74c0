# SPDX-License-Identifier: GPL-2.0-or-later
"""One decision under way: the state as it changes, and the effects it has ordered so far. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from appliance.core import Effect, Peer, Persist, Phase, Role, State, Tell, Wake


@dataclass
class Turn:
    """A state under change at `now` (monotonic seconds), and the effects so far."""

    state: State
    now: float
    effects: list[Effect] = field(default_factory=list)

    def set(self, **changes: Any) -> None:
        """Change what is no phase."""
        self.state = replace(self.state, **changes)

    def to(self, phase: Phase, reason: str, *effects: Effect, asking_from: Phase | None = None) -> None:
        """Enter a phase. A term still on its way to disk for the phase before is acted on no more."""
        self.set(phase=phase, reason=reason, asking_from=asking_from, retry_at=None, wanted=None, in_doubt=False,
                 next_granted=False,
                 needs_word=self.state.needs_word and phase in (Phase.ASKING, Phase.TAKING_OVER, Phase.FENCING))
        self.effects += [*effects, Tell()]

    def persist(self, term: int, role: Role) -> None:
        self.set(wanted=(term, role), writing=self.state.writing + 1, highest=max(self.state.highest, term))
        self.effects.append(Persist(term, role))

    def again(self, at: float) -> None:
        """Look again at what is to be done at this moment."""
        self.set(retry_at=at)
        self.effects.append(Wake(at))

    def claim(self, peer: Peer) -> None:
        """Take the term above all that both hosts know of."""
        self.persist(max(self.state.term, peer.term) + 1, Role.PRIMARY)
