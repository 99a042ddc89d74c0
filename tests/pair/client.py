# SPDX-License-Identifier: GPL-2.0-or-later
"""A client of a lab's VM: an echo connection and two to redis, kept open and busy, every answer judged."""

from __future__ import annotations

import secrets
import time

from appliance.lab import topology
from appliance.lab.lab import REDIS_PORT, Lab
from appliance.lab.streams import Echo, Incr, Redis, RedisStream, Stream, WrongAnswer

ECHO_PORT = 7
PACE = 0.003


class _InsideIncr(Incr):
    """INCR over a socket made in a namespace."""

    def __init__(self, namespace: str, run: str) -> None:
        super().__init__((topology.VM_IP, REDIS_PORT), run)
        self._namespace, self.pace_s = namespace, PACE

    def connect(self) -> None:
        with topology.inside(self._namespace):
            super().connect()


class _InsideEcho(Echo):
    """Echo over a socket made in a namespace."""

    def __init__(self, namespace: str) -> None:
        super().__init__((topology.VM_IP, ECHO_PORT))
        self._namespace, self.pace_s = namespace, PACE

    def connect(self) -> None:
        with topology.inside(self._namespace):
            super().connect()


class _InsideMemory(RedisStream):
    """Does the VM remember what it said? Each answer is a value of the VM's own choice, and what it chose before.

    An INCR that is carried out once more from the replay log gives the same answer again, and nobody would see
    that the first one had left too early. The VM's clock gives another.
    """

    name = "memory"
    SCRIPT = """local now = redis.call('TIME')
        return {redis.call('GETSET', KEYS[1], now[1] .. '.' .. now[2]), redis.call('GET', KEYS[1])}"""

    def __init__(self, namespace: str, run: str) -> None:
        super().__init__((topology.VM_IP, REDIS_PORT))
        self._namespace, self._key, self.pace_s = namespace, f"{run}:memory", PACE
        self._said: int | str | None = None

    def connect(self) -> None:
        with topology.inside(self._namespace):
            super().connect()

    def operate(self) -> None:
        answer = self.command("EVAL", self.SCRIPT, "1", self._key)
        if not isinstance(answer, list) or len(answer) != 2:
            raise WrongAnswer(f"the script answered {answer!r}")
        before, self._said = self._said, answer[1]
        if answer[0] != before:
            raise WrongAnswer(f"the VM said {before} and remembers {answer[0]}")


class Client:
    """Starts at once, ends with `close`."""

    def __init__(self, lab: Lab) -> None:
        self._namespace = lab.netns("client")
        run = f"pair-{secrets.token_hex(4)}"
        self._incr = _InsideIncr(self._namespace, run)
        memory, echo = _InsideMemory(self._namespace, run), _InsideEcho(self._namespace)
        self._streams: tuple[Stream, ...] = (self._incr, memory, echo)
        for stream in self._streams:
            stream.thread.start()

    def goes_on(self, seconds: float = 15.0) -> None:
        """Wait until everything asked from now on is answered."""
        now, deadline = time.monotonic_ns(), time.monotonic() + seconds
        for stream in self._streams:
            while not (stream.record.start_ns and stream.record.start_ns[-1] > now):
                assert time.monotonic() < deadline, f"{stream.name}: no answer in {seconds:g} s; {self.problems()}"
                time.sleep(0.005)

    def problems(self) -> list[str]:
        """Everything that the client saw and should not have: resets, lost INCRs, wrong answers."""
        found = list(self._incr.judge.problems)
        for stream in self._streams:
            found += [f"{stream.name}: {broken.kind}: {broken.cause}" for broken in stream.record.broken]
            found += [f"{stream.name}: {fault}" for fault in stream.record.faults if stream.answered.is_set()]
        return found

    def lost(self) -> int:
        """Acknowledged INCRs that a new connection does not find."""
        acknowledged = self._incr.judge.acknowledged
        with topology.inside(self._namespace):
            redis = Redis((topology.VM_IP, REDIS_PORT))
        try:
            return max(0, acknowledged - int(str(redis.command("GET", self._incr.key))))
        finally:
            redis.close()

    def close(self) -> None:
        """Stop; a stream that waits for an answer gives up later."""
        for stream in self._streams:
            stream.stop.set()
