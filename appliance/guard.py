# SPDX-License-Identifier: GPL-2.0-or-later
"""The guard: the check at the last hop that nothing uncommitted passes.

Invariant: a frame passes only while a term is open and its lease has not run out, and only if its own stamp is
not beyond `committed`. The check runs in the kernel (`ebpf/guard.bpf.c`); this is the service's hand on it. When
the service dies, so does the device that the guard sits on; when it stands still, the lease runs out.
"""

from dataclasses import dataclass

from appliance.errors import Unsafe
from ebpf.state import GuardState

FOREVER = 2**64 - 1


@dataclass(frozen=True, slots=True)
class GuardStats:
    """Frames seen at the last hop since the guard was made; all but `passed_*` were dropped."""

    open: bool
    term: int
    committed: int
    passed_frames: int
    passed_bytes: int
    early_frames: int
    closed_frames: int
    unstamped_frames: int
    expired_frames: int


class Guard:
    """Opens, closes and moves the boundary of one guard; each a write to memory, at once in force."""

    def __init__(self, state: GuardState) -> None:
        self._state = state
        self._highest_term = 0

    @property
    def is_open(self) -> bool:
        return self._state.term != 0

    @property
    def committed(self) -> int:
        """Sequence number of the last frame that may pass."""
        return self._state.committed

    def open(self, term: int) -> None:
        """Let committed frames pass, under `term` (1 or more), until `lease` says otherwise.

        Raises `Unsafe` for a term that is over.
        """
        if term < 1 or term < self._highest_term:
            raise Unsafe(f"the guard stays shut: term {term} is over, {self._highest_term} was seen")
        self._highest_term = term
        self._state.until_ns = FOREVER
        self._state.term = term

    def lease(self, until: float) -> None:
        """Let nothing pass from `until` (monotonic seconds) on, unless a later call moves it."""
        self._state.until_ns = max(0, int(until * 1e9))

    def close(self) -> None:
        """Drop everything from now on."""
        self._state.term = 0

    def commit(self, seq: int) -> None:
        """Frames up to `seq` may pass. The boundary never moves back."""
        if seq > self._state.committed:
            self._state.committed = seq

    def stats(self) -> GuardStats:
        state = self._state
        return GuardStats(
            open=state.term != 0,
            term=state.term,
            committed=state.committed,
            passed_frames=state.passed_frames,
            passed_bytes=state.passed_bytes,
            early_frames=state.early_frames,
            closed_frames=state.closed_frames,
            unstamped_frames=state.unstamped_frames,
            expired_frames=state.expired_frames,
        )
