# SPDX-License-Identifier: GPL-2.0-or-later
"""The gate: holds what the VM sends until the epoch that sent it is committed.

Invariant: no frame beyond the released mark leaves the hold, whatever happens to this process; the
guard (`appliance/guard.py`) checks the same again for each frame. What is held is bounded in frames and
bytes; at the limit the kernel half drops, and counts what it drops.
"""

import asyncio
import os
import select
import struct
import time
from dataclasses import dataclass
from typing import Protocol

from appliance.errors import Unavailable
from appliance.guard import Guard
from appliance.tap import VNET_HEADER, Counters
from ebpf.state import STAMP_FRAMES, STAMP_PROTO, GateState, number_of

SLICE = 0.0008  # seconds that frames are moved for before other tasks get a turn
_FRAME_BYTES = 128 << 10  # more than the longest frame a tap can carry
_STAMP_AT = VNET_HEADER + 12
_STAMP = struct.Struct("!HH")


@dataclass(frozen=True, slots=True)
class Mark:
    """All the VM has sent so far: the number of the last frame, and bytes since the gate was made."""

    seq: int
    bytes: int


@dataclass(frozen=True, slots=True)
class GateStats:
    """What a gate holds now, and what it has done since it was made."""

    backend: str
    held_frames: int
    held_bytes: int
    limit_frames: int
    limit_bytes: int
    released_frames: int
    released_bytes: int
    dropped_frames: int  # thrown away by drop()
    overflow_frames: int  # dropped: the VM sent more than the limits allow
    overflow_bytes: int
    lost_frames: int  # dropped: no memory, the hold's ring was full, or the way out refused
    foreign_frames: int  # dropped: found in the hold without a stamp


class Gate(Protocol):
    """What every backend does; tests/net/gate_conformance.py holds each of them to it."""

    name: str

    def mark(self) -> Mark:
        """All the VM has sent so far belongs to the epoch that ends now."""

    async def release(self, mark: Mark) -> int:
        """Let everything up to `mark` pass, in order; returns the frames moved."""

    def drop(self) -> int:
        """Throw away everything held; returns the frames thrown away."""

    async def output(self) -> None:
        """Return when the VM has sent something after the last mark."""

    def pending(self) -> bool:
        """Has the VM sent something after the last mark?"""

    def held_bytes(self) -> int: ...

    def span(self) -> tuple[int, int]:
        """Number of the last frame that has left the hold, and of the last that the VM has sent."""

    def stats(self) -> GateStats: ...

    def close(self) -> None: ...


class RingGate:
    """Holds the frames in the ring of a tap; user space moves them out on release.

    Works on any kernel with TC and tun, and keeps frames of 64 KiB whole. Each frame carries its number as a
    stamp, so the gate knows where to stop: gaps (the ring refused a frame) and several frames of one number
    (the kernel cut a frame up) do no harm.
    """

    name = "ring"

    def __init__(
        self, hold_fd: int, out_fd: int, state: GateState, guard: Guard, counters: Counters, limit_bytes: int
    ) -> None:
        """Takes over `hold_fd` and `counters` (closed with the gate), uses `out_fd`."""
        self._hold, self._out = hold_fd, out_fd
        self._state, self._guard, self._counters = state, guard, counters
        state.limit_bytes = limit_bytes
        state.limit_frames = STAMP_FRAMES
        self._marked = 0
        self._dropped_to = 0  # frames up to this number are never moved, even if they turn up late
        self._buffer = memoryview(bytearray(_FRAME_BYTES))
        self._moved_to = 0  # number of the last frame moved
        self._waiting = 0  # bytes in the buffer of a frame that was read but lies beyond the mark
        self._moving = asyncio.Lock()
        self._released = self._dropped = self._foreign = self._refused = 0
        # A frame is an edge: a hold that is never empty must not keep the loop awake.
        self._edge = select.epoll()
        self._edge.register(hold_fd, select.EPOLLIN | select.EPOLLET)
        self._woken: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def mark(self) -> Mark:
        self._marked = self._state.issued_frames
        return Mark(self._marked, self._state.issued_bytes)

    def pending(self) -> bool:
        return self._state.issued_frames > self._marked

    def held_bytes(self) -> int:
        return max(0, self._state.issued_bytes - self._state.released_bytes)

    def span(self) -> tuple[int, int]:
        return self._state.released_frames, self._state.issued_frames

    async def output(self) -> None:
        """Return when the VM has sent something after the last mark. Raises `Unavailable` once closed."""
        while not self.pending():
            if self._closed:
                raise Unavailable("the gate is closed")
            if self._woken is None:
                self._loop = asyncio.get_running_loop()
                self._woken = self._loop.create_future()
                self._loop.add_reader(self._edge, self._wake)
            await asyncio.wait((self._woken,))  # one who stops waiting leaves the others waiting

    def _wake(self) -> None:
        """The hold got a frame, or the gate closes: end the wait, and stop listening until the next one."""
        if self._woken is not None and self._loop is not None:
            self._loop.remove_reader(self._edge)
            self._woken.set_result(None)
            self._woken = None
        self._edge.poll(0)

    async def release(self, mark: Mark) -> int:
        """Let everything up to `mark` pass, in order; other tasks get a turn every millisecond.

        Returns the frames moved. A `drop` in between ends it; frames thrown away are not moved later either.
        Raises `Unavailable` when somebody took the hold tap away: nothing more can pass then.
        """
        async with self._moving:
            state, moved, more = self._state, 0, True
            if mark.seq <= state.released_frames:
                return 0
            self._guard.commit(mark.seq)
            while more and not self._closed and mark.seq > self._dropped_to:
                count, size, more = self._move(mark.seq, time.perf_counter() + SLICE)
                moved += count
                # Room for the VM as it becomes free; what the frames themselves do not tell is settled below.
                state.released_frames = max(state.released_frames, self._moved_to)
                state.released_bytes = max(state.released_bytes, min(mark.bytes, state.released_bytes + size))
                if more:
                    await asyncio.sleep(0)
            if mark.seq > self._dropped_to and not self._closed:
                state.released_frames = mark.seq
                state.released_bytes = max(mark.bytes, state.released_bytes)
            self._released += moved
            return moved

    def _move(self, seq: int, until: float) -> tuple[int, int, bool]:
        """Move frames up to number `seq` until the time `until`: frames, bytes, is there more?"""
        hold, out, buffer, vector = self._hold, self._out, self._buffer, [self._buffer]
        size, self._waiting = self._waiting, 0
        moved = moved_bytes = 0
        while True:
            if not size:
                try:
                    size = os.readv(hold, vector)
                except BlockingIOError:
                    return moved, moved_bytes, False
                except OSError as error:
                    raise Unavailable("the hold tap is gone", "start the service again") from error
            proto, stamp = _STAMP.unpack_from(buffer, _STAMP_AT)
            number = number_of(stamp, seq)
            if size < _STAMP_AT + 4 or proto != STAMP_PROTO:
                self._foreign += 1
            elif number > seq:
                self._waiting = size
                return moved, moved_bytes, False
            elif number > self._dropped_to:
                try:
                    os.write(out, buffer[:size])
                    moved += 1
                except OSError:
                    self._refused += 1
                moved_bytes += size - VNET_HEADER - 4
                self._moved_to = number
            size = 0
            if time.perf_counter() > until:
                return moved, moved_bytes, True

    def drop(self) -> int:
        state = self._state
        self._dropped_to = self._marked = state.issued_frames
        issued_bytes = state.issued_bytes
        dropped, self._waiting = int(self._waiting > 0), 0
        vector = [self._buffer]
        try:
            while True:
                os.readv(self._hold, vector)
                dropped += 1
        except OSError:
            pass
        state.released_frames, state.released_bytes = self._dropped_to, issued_bytes
        self._dropped += dropped
        return dropped

    def stats(self) -> GateStats:
        state = self._state
        return GateStats(
            backend=self.name,
            held_frames=max(0, state.issued_frames - state.released_frames),
            held_bytes=self.held_bytes(),
            limit_frames=state.limit_frames,
            limit_bytes=state.limit_bytes,
            released_frames=self._released,
            released_bytes=state.released_bytes,
            dropped_frames=self._dropped,
            overflow_frames=state.overflow_frames,
            overflow_bytes=state.overflow_bytes,
            lost_frames=state.failed_frames + self._counters.sent()[1] + self._refused,
            foreign_frames=self._foreign,
        )

    def close(self) -> None:
        """Nothing more is held or let out: the hold tap goes, and with it what it holds."""
        if self._closed:
            return
        self._closed = True
        self._state.limit_frames = 0
        self._wake()
        self._edge.close()
        self._counters.close()
        os.close(self._hold)
