# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMUs of this host: does each live, and how long does it take to answer?

A VM that is checkpointed answers QEMU's monitor hundreds of times a second anyway: those answers are the measure, and
nothing is asked that a pause could have to wait for. Only a QEMU that nobody talks to is asked for its status.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from appliance.health.judge import Rule
from appliance.health.monitor import Assessor
from appliance.health.reading import Reading, State
from appliance.health.settings import Health
from vmlink.errors import VmError
from vmlink.qemu import Qemu

RECENT = 0.5
"""Seconds; an answer that old is as good as a new one."""
WAIT = 0.3
"""Seconds after which a round goes on without an answer."""


@dataclass(frozen=True)
class Guest:
    """One VM on this host. qemu: None where it does not run. answers: when its monitor last answered a checkpoint
    (monotonic), and in how many seconds; None if it takes none. storage: what is wrong with each kind of storage that
    it has, as this host sees it, by component; empty if nothing is, None where nobody uses it."""

    vm: str
    qemu: Qemu | None
    answer: tuple[float, float] | None = None
    storage: Mapping[str, str | None] = field(default_factory=dict)


class _Question:
    """A question to a QEMU that has not answered yet."""

    def __init__(self, qemu: Qemu) -> None:
        self.qemu, self.asked, self.took = qemu, time.monotonic(), 0.0
        self.error = ""
        self.task = asyncio.get_running_loop().create_task(self._ask(), name="query-status")

    async def _ask(self) -> None:
        try:
            await self.qemu.monitor.status()
        except VmError as error:
            self.error = error.message
        self.took = time.monotonic() - self.asked


class Machines:
    """The monitor `qemu`. `guests` tells of every VM in the configuration."""

    name = "qemu"

    def __init__(self, guests: Callable[[], Iterable[Guest]], health: Health) -> None:
        self.interval = health.interval
        self._guests = guests
        self._assess = Assessor(self.name, health.rounds, health.settle)
        self._slow = Rule(health.qmp_warn, health.qmp_max, rounds=1)
        self._asked: dict[str, _Question] = {}

    def close(self) -> None:
        for question in self._asked.values():
            question.task.cancel()

    async def read(self) -> list[Reading]:
        guests = list(self._guests())
        for guest in guests:
            self._ask(guest)
        if waiting := [question.task for question in self._asked.values()]:
            await asyncio.wait(waiting, timeout=min(WAIT, self.interval / 2))
        return [reading for guest in guests for reading in (self._lives(guest), self._answers(guest))]

    def _ask(self, guest: Guest) -> None:
        """One question at a time, and none while checkpoints are taken."""
        question, qemu = self._asked.get(guest.vm), guest.qemu
        if question is not None and question.qemu is not qemu:
            question.task.cancel()
            del self._asked[guest.vm]
            question = None
        if qemu is not None and not _recent(guest) and (question is None or question.task.done()):
            self._asked[guest.vm] = _Question(qemu)

    def _lives(self, guest: Guest) -> Reading:
        subject, source = f"{guest.vm} process", "/proc/PID/stat"
        if guest.qemu is None:
            return self._assess.unknown(subject, "it does not run here now", source)
        state = _process_state(guest.qemu.pid)
        well = state not in ("", "Z", "X", "T", "t")
        reason = {"": "the process is gone", "T": "the process is stopped", "t": "the process is stopped"}
        return self._assess.found(subject, State.OK if well else State.FAILED, value=guest.qemu.pid, unit="pid",
                                  source=source, rounds=1, reason="" if well else reason.get(state, "it has ended"))

    def _answers(self, guest: Guest) -> Reading:
        subject = f"{guest.vm} monitor"
        if guest.qemu is None:
            return self._assess.unknown(subject, "it does not run here now")
        if _recent(guest) and guest.answer is not None:
            return self._assess.value(subject, guest.answer[1], self._slow, unit="s", source="QMP cont", digits=6)
        source, question = "QMP query-status", self._asked.get(guest.vm)
        if question is None:
            return self._assess.unknown(subject, "not asked yet", source)
        if question.error:
            return self._assess.found(subject, State.FAILED, source=source, reason=question.error)
        took = question.took if question.task.done() else time.monotonic() - question.asked
        return self._assess.value(subject, took, self._slow, unit="s", source=source, digits=6)


def _recent(guest: Guest) -> bool:
    return guest.answer is not None and time.monotonic() - guest.answer[0] < RECENT


def _process_state(pid: int) -> str:
    """The letter that /proc shows, "" when there is no such process."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, 4096).rpartition(b")")[2].split()[0].decode()
    except (OSError, IndexError):
        return ""
    finally:
        os.close(descriptor)
