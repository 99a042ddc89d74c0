# SPDX-License-Identifier: GPL-2.0-or-later
"""A child process that cannot outlive us: started without blocking the event loop, watched by pidfd.

The kernel sends the death signal when the *thread* that forked ends, so only the main thread may spawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence

from vmlink.errors import VmError

WORDS_LIMIT = 16 << 10
"""Bytes of the child's standard error that are kept, the last ones."""

KILL_TIMEOUT = 10.0
"""Seconds until a killed process has to be gone."""

_IF_PARENT_LIVES = '[ "$PPID" = "$0" ] && exec "$@"'
"""For sh: a parent that died before the death signal was asked for is noticed only by looking afterwards."""


class Child:
    """One child process. `pid`; `died()` waits for its end; `kill()` ends it. Use `spawn`."""

    def __init__(self, popen: subprocess.Popen[bytes], words_fd: int) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._words_fd = words_fd
        self._words = bytearray()
        self._pidfd = os.pidfd_open(popen.pid)
        self._end: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(words_fd, self._read_words)
        self._loop.add_reader(self._pidfd, self._reap)

    @classmethod
    def spawn(cls, command: Sequence[str], *, pass_fds: Sequence[int] = (), stdout: int | None = None,
              environment: Mapping[str, str] | None = None) -> Child:
        """Start `command`; it is killed when this process dies. `environment` is added to ours.

        Takes 1-3 ms (vfork). Raises VmError: not the main thread, setpriv missing, cannot be executed.
        """
        if threading.current_thread() is not threading.main_thread():
            raise VmError("a process may only be started from the main thread",
                          "its death signal is tied to the thread that starts it")
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise VmError("setpriv not found", "install util-linux")
        # `env` and not our own environment: what is added is for the program alone, not for setpriv.
        added = ["env", *(f"{name}={value}" for name, value in environment.items())] if environment else []
        guarded = [setpriv, "--pdeathsig", "KILL", "--", "sh", "-c", _IF_PARENT_LIVES, str(os.getpid())]
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(read_end, False)
        try:
            popen = subprocess.Popen([*guarded, *added, *command], stdin=subprocess.DEVNULL,
                                     stdout=stdout or subprocess.DEVNULL, stderr=write_end,
                                     pass_fds=pass_fds, start_new_session=True, cwd="/")
        except OSError as error:
            os.close(read_end)
            raise VmError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(write_end)
        return cls(popen, read_end)

    async def died(self) -> str:
        """Wait for the end of the process; returns its cause ("killed by signal 9", "exited with 1: ...")."""
        return await asyncio.shield(self._end)

    async def condition(self, wait: float = 0.0) -> str:
        """In words: how it ended, or what it does now; waits up to `wait` seconds for its end."""
        if wait and not self._end.done():
            await asyncio.wait((self._end,), timeout=wait)
        return f"process {self.pid} {self.ended or 'is ' + _activity(self.pid)}"

    @property
    def ended(self) -> str:
        """The cause of its end, "" while it lives."""
        return self._end.result() if self._end.done() else ""

    async def kill(self) -> None:
        """End it at once and reap it. Idempotent. Raises VmError when KILL_TIMEOUT was not enough."""
        if not self._end.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            try:
                await asyncio.wait_for(self.died(), KILL_TIMEOUT)
            except TimeoutError:
                raise VmError(f"process {self.pid} is still there {KILL_TIMEOUT:g} s after it was killed",
                              "it hangs in the kernel; the host needs a look") from None

    def words(self) -> str:
        """The last lines it wrote to standard error."""
        lines = self._words.decode(errors="replace").strip().splitlines()
        return "\n".join(lines[-8:])

    def _read_words(self) -> bool:
        """Take what is in the pipe; False when there was nothing."""
        try:
            data = os.read(self._words_fd, WORDS_LIMIT)
        except BlockingIOError:
            return False
        self._words += data
        del self._words[:-WORDS_LIMIT]
        if not data:
            self._close_words()
        return bool(data)

    def _close_words(self) -> None:
        if self._words_fd >= 0:
            self._loop.remove_reader(self._words_fd)
            os.close(self._words_fd)
            self._words_fd = -1

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = self._popen.wait()
        os.close(self._pidfd)
        # What it said last may still be in the pipe; whoever else holds the pipe is not waited for.
        while self._words_fd >= 0 and self._read_words():
            pass
        self._close_words()
        cause = f"killed by signal {-code}" if code < 0 else f"exited with {code}"
        words = self.words()
        self._end.set_result(f"{cause}: {words}" if words else cause)


_ACTIVITIES = {"R": "running", "S": "waiting", "D": "hanging in the kernel", "T": "stopped by a signal",
               "t": "stopped by a debugger", "Z": "dead"}


def _activity(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "gone"
    return _ACTIVITIES.get(state, f"in state {state}")
