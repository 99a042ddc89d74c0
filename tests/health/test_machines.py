# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMUs: alive, stopped, dead, and how fast they answer; one that is checkpointed is not asked."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from appliance.health.machines import Guest, Machines
from appliance.health.reading import Reading, State
from appliance.health.settings import Health
from tests.health.conftest import until
from vmlink.errors import VmError
from vmlink.qemu import Qemu

OK, WARN, FAILED, UNKNOWN = State.OK, State.WARN, State.FAILED, State.UNKNOWN
QUICK = Health(interval=0.1, qmp_warn=0.02, qmp_max=0.2, settle=0.0, rounds=2)


class Monitor:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.waiting, self.error = 0, 0, ""
        self.answers = asyncio.Event()
        self.answers.set()

    async def status(self) -> str:
        self.asked += 1
        self.waiting += 1
        try:
            await self.answers.wait()
        finally:
            self.waiting -= 1
        if self.error:
            raise VmError(self.error)
        return "running"


class Process:
    """A real process with a monitor that is none."""

    def __init__(self, pid: int) -> None:
        self.pid, self.monitor = pid, Monitor()


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def guest(process: Any, answer: tuple[float, float] | None = None) -> Guest:
    return Guest("web1", cast(Qemu, process), answer)


async def read(machines: Machines) -> tuple[Reading, Reading]:
    process, monitor = await machines.read()
    return process, monitor


def test_a_vm_that_does_not_run_here() -> None:
    machines = Machines(lambda: [Guest("web1", None)], QUICK)
    assert {one.state for one in asyncio.run(read(machines))} == {UNKNOWN}


def test_a_qemu_that_lives_stops_and_dies(sleeper: subprocess.Popen[bytes]) -> None:
    def shows(letter: str) -> bool:
        with open(f"/proc/{sleeper.pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == letter

    async def scene() -> None:
        process = Process(sleeper.pid)
        machines = Machines(lambda: [guest(process)], QUICK)
        alive, answers = await read(machines)
        assert (alive.state, alive.value, answers.state, answers.source) == (OK, sleeper.pid, OK, "QMP query-status")
        sleeper.send_signal(signal.SIGSTOP)
        until("it is stopped", lambda: shows("T"))
        assert (await read(machines))[0].reason == "the process is stopped"
        sleeper.kill()
        until("it is dead", lambda: shows("Z"))
        assert (await read(machines))[0].reason == "it has ended"
        sleeper.wait(10)
        assert (await read(machines))[0].reason == "the process is gone"
        machines.close()

    asyncio.run(scene())


def test_a_qemu_that_does_not_answer(sleeper: subprocess.Popen[bytes]) -> None:
    """It is asked once, and not again before it has answered; other readings do not wait for it."""
    async def scene() -> None:
        process = Process(sleeper.pid)
        machines = Machines(lambda: [guest(process)], QUICK)
        process.monitor.answers.clear()
        states = []
        while FAILED not in states:
            begun = time.monotonic()
            states.append((await read(machines))[1].state)
            assert time.monotonic() - begun < 1.0 and len(states) < 50
        assert WARN in states and process.monitor.asked == process.monitor.waiting == 1
        process.monitor.error = "query-status: no answer for 5 s"
        process.monitor.answers.set()
        assert [(await read(machines))[1].state for _ in range(3)][-1] is FAILED
        assert "no answer for 5 s" in (await read(machines))[1].reason
        process.monitor.error = ""
        assert (await read(machines))[1].state is OK
        machines.close()

    asyncio.run(scene())


def test_a_qemu_that_is_checkpointed_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        process = Process(sleeper.pid)
        took = [0.001]
        machines = Machines(lambda: [guest(process, (time.monotonic(), took[0]))], QUICK)
        seen = (await read(machines))[1]
        assert (seen.state, seen.value, seen.source) == (OK, 0.001, "QMP cont")
        took[0] = 0.5
        assert (await read(machines))[1].state is FAILED
        assert process.monitor.asked == 0
        machines.close()

    asyncio.run(scene())


def test_the_question_to_a_qemu_that_was_replaced_is_forgotten(sleeper: subprocess.Popen[bytes]) -> None:
    async def scene() -> None:
        old, new = Process(sleeper.pid), Process(sleeper.pid)
        now = [old]
        machines = Machines(lambda: [guest(now[0])], QUICK)
        old.monitor.answers.clear()
        await read(machines)
        now[0] = new
        assert (await read(machines))[1].state in (OK, WARN)
        assert (old.monitor.waiting, new.monitor.asked) == (0, 1)
        machines.close()

    asyncio.run(scene())
