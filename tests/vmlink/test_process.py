# SPDX-License-Identifier: GPL-2.0-or-later
"""Child processes: their end is seen at once and told in words, and they never outlive us."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from tests.vmlink.machine import until
from vmlink.errors import VmError
from vmlink.process import WORDS_LIMIT, Child


def test_tells_exit_code_and_last_words() -> None:
    async def scene() -> None:
        child = Child.spawn(["sh", "-c", "echo first >&2; echo 'no such machine' >&2; exit 3"])
        assert await child.died() == "exited with 3: first\nno such machine"
        assert child.ended.startswith("exited with 3")
        await child.kill()

    asyncio.run(scene())


def test_tells_the_signal() -> None:
    async def scene() -> None:
        child = Child.spawn(["sleep", "60"])
        os.kill(child.pid, signal.SIGSEGV)
        assert await child.died() == "killed by signal 11"
        assert await child.condition() == f"process {child.pid} killed by signal 11"

    asyncio.run(scene())


def test_kill_is_idempotent_and_works_on_a_stopped_process() -> None:
    async def scene() -> None:
        child = Child.spawn(["sleep", "60"])
        os.kill(child.pid, signal.SIGSTOP)
        await until(lambda: "T" in Path(f"/proc/{child.pid}/stat").read_text(), "stopped")
        assert "stopped by a signal" in await child.condition()
        await asyncio.gather(child.kill(), child.kill())
        assert child.ended == "killed by signal 9"

    asyncio.run(scene())


def test_endless_words_are_bounded() -> None:
    async def scene() -> None:
        child = Child.spawn(["sh", "-c", f"head -c {WORDS_LIMIT * 20} /dev/zero >&2; echo the end >&2"])
        end = await child.died()
        assert end.endswith("the end") and len(end) <= WORDS_LIMIT + 100

    asyncio.run(scene())


def test_a_grandchild_that_keeps_the_pipe_is_not_waited_for() -> None:
    async def scene() -> None:
        child = Child.spawn(["sh", "-c", "sleep 20 & echo $! >&2; exit 1"])
        end = await asyncio.wait_for(child.died(), 5)
        os.kill(int(end.split(": ")[1]), signal.SIGKILL)

    asyncio.run(scene())


def test_only_the_main_thread_spawns() -> None:
    caught: list[VmError] = []

    def elsewhere() -> None:
        try:
            Child.spawn(["sleep", "60"])
        except VmError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in caught[0].message


def test_missing_program_is_told() -> None:
    async def scene() -> None:
        assert "nonexistent" in await Child.spawn(["/nonexistent/program"]).died()

    asyncio.run(scene())


def test_setpriv_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(VmError, match="setpriv") as caught:
        Child.spawn(["/bin/sleep", "60"])
    assert "util-linux" in caught.value.hint


def test_dies_with_us() -> None:
    program = textwrap.dedent("""
        import asyncio
        from vmlink.process import Child
        async def main():
            child = Child.spawn(["sleep", "60"])
            print(child.pid, flush=True)
            await child.died()
        asyncio.run(main())
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parents[2]) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        watch = os.pidfd_open(pid)
        parent.kill()
    try:
        asyncio.run(_gone(watch))
    finally:
        os.close(watch)


async def _gone(pidfd: int) -> None:
    gone = asyncio.Event()
    asyncio.get_running_loop().add_reader(pidfd, gone.set)
    await asyncio.wait_for(gone.wait(), 5)
    asyncio.get_running_loop().remove_reader(pidfd)
