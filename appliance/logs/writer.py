# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes lines to a descriptor from a thread: whoever hands one over never waits, though the reader at the other end
may have stopped reading. What does not fit in the bound is lost, counted, and told once there is room."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time

WAITING = 1 << 20
"""Bytes that may wait to be written."""
RETRY = 1.0
"""Seconds until a descriptor that refuses is tried again."""


class Writer:
    """See the module. `notice` makes the line that tells how many were lost."""

    def __init__(self, fd: int, limit: int = WAITING) -> None:
        self._fd, self._limit = fd, limit
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._untold = 0
        self._busy = self._closing = False
        self.lost = 0
        """Lines lost since it began."""
        self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Have `line` written, if there is room for it."""
        with self._lock:
            if self._untold or self._bytes + len(line) > self._limit:
                self._untold += 1  # those after it too, so that the gap is where it is told
                self.lost += 1
            else:
                self._lines.append(line)
                self._bytes += len(line)
        self._wake.set()

    def notice(self, lost: int) -> bytes:
        """The line that tells of a gap."""
        return b"%d log lines are missing here: they were not read in time\n" % lost

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds, and end."""
        deadline = time.monotonic() + timeout
        self._closing = True
        self._wake.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while not (self._closing and not self._lines and not self._untold):
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                lines, self._lines = self._lines, []
            for line in lines:
                written = self._write(line)
                with self._lock:
                    self._bytes -= len(line)
                    if not written:
                        self._untold += 1
                        self.lost += 1
            with self._lock:
                untold, self._untold = self._untold, 0
            if untold and not self._write(self.notice(untold)):
                with self._lock:
                    self._untold += untold
                if self._closing:
                    return

    def _write(self, line: bytes) -> bool:
        view = memoryview(line)
        while view:
            try:
                view = view[os.write(self._fd, view):]
            except BlockingIOError:  # somebody made it so for all who share it
                with contextlib.suppress(OSError):
                    select.select((), (self._fd,), (), RETRY)
            except InterruptedError:
                continue
            except OSError:  # nobody reads any more, or the disk is full
                return False
        return True
