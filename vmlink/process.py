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
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            popen = subprocess.Popen([setpriv, "--pdeathsig", "KILL", "--", *added, *command],
                                     stdin=subprocess.DEVNULL, stdout=stdout or subprocess.DEVNULL,
                                     stderr=write_end, pass_fds=pass_fds, start_new_session=True, cwd="/")
        except OSError as error:
            os.close(read_end)
            raise VmError(f"cannot start {command[0]}: {error.strerror}") from error
        finally:
            os.close(write_end)
        return cls(popen, read_end)

    async def died(self) -> str:
        """Wait for the end of the process; returns its cause ("killed by signal 9", "exited with 1: ...")."""
        return await asyncio.shield(self._end)

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

    def _read_words(self) -> None:
        try:
            data = os.read(self._words_fd, WORDS_LIMIT)
        except BlockingIOError:
            return
        if not data:
            self._close_words()
            return
        self._words += data
        del self._words[:-WORDS_LIMIT]

    def _close_words(self) -> None:
        if self._words_fd >= 0:
            self._loop.remove_reader(self._words_fd)
            os.close(self._words_fd)
            self._words_fd = -1

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = self._popen.wait()
        os.close(self._pidfd)
        # What it said last may still be in the pipe; children of its own may hold the pipe open.
        while self._words_fd >= 0:
            before = len(self._words), bytes(self._words[-64:])
            self._read_words()
            if before == (len(self._words), bytes(self._words[-64:])):
                break
        self._close_words()
        cause = f"killed by signal {-code}" if code < 0 else f"exited with {code}"
        words = self.words()
        self._end.set_result(f"{cause}: {words}" if words else cause)
