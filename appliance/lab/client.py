# SPDX-License-Identifier: GPL-2.0-or-later
"""A busy client of a lab's VM in this process: connections kept open, every answer judged, at any time."""

from __future__ import annotations

import secrets
import time

from appliance.errors import TimedOut
from appliance.lab import topology
from appliance.lab.judge import WriteJudge
from appliance.lab.lab import REDIS_PORT, Lab
from appliance.lab.recording import StreamRecord
from appliance.lab.streams import Echo, Incr, Redis, RedisStream, Set, Stream, WrongAnswer
from appliance.lab.workload import read_back

ECHO_PORT = 7
PACE = 0.003
KEPT = 500  # of so many writes that were read back one stays in the VM, to be read back again


class _InsideIncr(Incr):
    """INCR over a socket made in a namespace."""

    def __init__(self, namespace: str, ip: str, run: str) -> None:
        super().__init__((ip, REDIS_PORT), run)
        self._namespace, self.pace_s = namespace, PACE

    def connect(self) -> None:
        with topology.inside(self._namespace):
            super().connect()


class _InsideSet(Set):
    """SET over a socket made in a namespace."""

    def __init__(self, namespace: str, ip: str, run: str) -> None:
        super().__init__((ip, REDIS_PORT), run)
        self._namespace, self.pace_s = namespace, PACE

    def connect(self) -> None:
        with topology.inside(self._namespace):
            super().connect()


class _InsideEcho(Echo):
    """Echo over a socket made in a namespace."""

    def __init__(self, namespace: str, ip: str) -> None:
        super().__init__((ip, ECHO_PORT))
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

    def __init__(self, namespace: str, ip: str, run: str) -> None:
        super().__init__((ip, REDIS_PORT))
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

    def __init__(self, lab: Lab, ip: str = topology.VM_IP) -> None:
        self._namespace, self._ip = lab.netns("client"), ip
        self._run = f"pair-{secrets.token_hex(4)}"
        self._incr = _InsideIncr(self._namespace, ip, self._run)
        self._set = _InsideSet(self._namespace, ip, self._run)
        self._memory, self._echo = _InsideMemory(self._namespace, ip, self._run), _InsideEcho(self._namespace, ip)
        self._streams: tuple[Stream, ...] = (self._incr, self._set, self._memory, self._echo)
        self._kept = WriteJudge(self._run)
        for stream in self._streams:
            stream.thread.start()

    def goes_on(self, seconds: float = 15.0) -> None:
        """Wait until everything asked from now on is answered. Raises TimedOut."""
        now, deadline = time.monotonic_ns(), time.monotonic() + seconds
        for stream in self._streams:
            while not (stream.record.start_ns and stream.record.start_ns[-1] > now):
                if time.monotonic() >= deadline:
                    raise TimedOut(f"{stream.name}: the client has no answer for {seconds:g} s; {self.problems()}",
                                   "does anybody run the VM? See the logs of both hosts")  # fmt: skip
                time.sleep(0.005)

    def problems(self) -> list[str]:
        """Everything that the client saw and should not have: resets, lost writes, wrong answers."""
        found = [*self._incr.judge.problems, *self._set.judge.problems, *self._kept.problems]
        for stream in self._streams:
            found += [f"{stream.name}: {broken.kind}: {broken.cause}" for broken in stream.record.broken]
            found += [f"{stream.name}: {fault}" for fault in stream.record.faults if stream.answered.is_set()]
        return found

    def resets(self) -> int:
        """Connections that the VM, or whoever stood in for it, ended."""
        return sum(broken.kind == "reset" for stream in self._streams for broken in stream.record.broken)

    def lost(self) -> int:
        """Acknowledged writes that a new connection does not find, or that an answer contradicted."""
        judge = self._incr.judge
        acknowledged, known = judge.acknowledged, judge.lost + self._memory.wrong_answers
        redis = self._redis()
        try:
            missing = max(0, acknowledged - int(str(redis.command("GET", self._incr.key) or 0)))
            return known + missing + self._lost_sets(redis)
        finally:
            redis.close()

    def _lost_sets(self, redis: Redis) -> int:
        """Reads back every SET since the last time, and a sample of all before; the rest makes room in the VM."""
        fresh, kept = self._set.judge, self._kept
        # An operation under way notes its end with the new judge, and stays unanswered with the old one.
        self._set.judge = WriteJudge(self._run)
        for judge in (fresh, kept):
            for index, value in read_back(redis, judge):
                judge.read_back(index, value)
        kept.lost += fresh.lost
        kept.problems += fresh.problems
        kept.acknowledged += fresh.acknowledged[::KEPT]
        past = sorted({*fresh.acknowledged} - {*kept.acknowledged})
        for begin in range(0, len(past), 500):
            redis.command("DEL", *(fresh.key(index) for index in past[begin : begin + 500]))
        return kept.lost

    def _redis(self) -> Redis:
        with topology.inside(self._namespace):
            return Redis((self._ip, REDIS_PORT))

    def longest_wait_ms(self, begin: float, end: float) -> float:
        """The longest time in ms that the echo connection stood still, of all that touch [begin, end].

        begin, end: monotonic seconds. What came before `begin` is forgotten. Call `goes_on` before.
        """
        begin_ns, end_ns = round(begin * 1e9), round(end * 1e9)
        echo = self._echo.record
        whole = len(echo.latency_ns)  # the stream's own thread appends meanwhile, a start before its latency
        seen = StreamRecord(echo.name, echo.start_ns[:whole], echo.latency_ns[:whole], list(echo.broken))
        longest = seen.longest_stall_ms(begin_ns, end_ns)
        for stream in self._streams:
            record = stream.record
            done = sum(1 for at in record.start_ns[: len(record.latency_ns)] if at < begin_ns)
            del record.start_ns[:done], record.latency_ns[:done]
        return longest

    def close(self) -> None:
        """Stop; a stream that waits for an answer gives up later."""
        for stream in self._streams:
            stream.stop.set()
