# SPDX-License-Identifier: GPL-2.0-or-later
"""A real terminal: a program in a tmux of its own, keys sent to it, its screen read."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count()
_CLOCK = re.compile(r"\d\d:\d\d:\d\d\.\d{3}")


class Terminal:
    """Runs `holdfast WORDS`, or `command`, in a window of `columns` by `rows`. There is a `holdfast` in `home`. The
    server of tmux is this test's own."""

    def __init__(self, home: Path, words: list[str], *, columns: int = 110, rows: int = 24,
                 environment: dict[str, str] | None = None, command: list[str] | None = None) -> None:
        holdfast = home / "holdfast"
        holdfast.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m appliance.cli "$@"\n')
        holdfast.chmod(0o755)
        self._socket = str(home / f"tmux{next(_numbers)}.sock")
        inherited = {"PYTHONPATH": str(ROOT), "HOME": str(home), "LC_ALL": "C.UTF-8", **(environment or {})}
        run = ["env", *(f"{key}={value}" for key, value in inherited.items()), *(command or [str(holdfast), *words])]
        # The window stays when the program has ended, with its last screen and its exit code.
        self._tmux("-f", "/dev/null", "new-session", "-d", "-x", str(columns), "-y", str(rows), "-c", str(home),
                   shlex.join(run) + "; code=$?; echo; echo ended with $code; exec sleep 600")

    def _tmux(self, *words: str) -> str:
        without = {key: value for key, value in os.environ.items() if not key.startswith("TMUX")}
        done = subprocess.run(["tmux", "-S", self._socket, *words], capture_output=True, text=True, timeout=20,
                              env={**without, "TERM": "xterm-256color"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        """Such as Enter, Tab, C-c."""
        self._tmux("send-keys", *keys)

    def enter(self, text: str) -> None:
        self.type(text)
        self.press("Enter")

    def screen(self, *, colours: bool = False) -> list[str]:
        """Its lines, times as TIME, without what is empty at their ends."""
        text = self._tmux("capture-pane", "-p", *(["-e"] if colours else []))
        return [_CLOCK.sub("TIME", line).rstrip() for line in text.splitlines()]

    def shows(self, holds: str | Callable[[list[str]], bool], timeout: float = 30.0) -> list[str]:
        """Wait until a line has that text, or the screen is as `holds` wants it; returns the screen."""
        deadline = time.monotonic() + timeout
        while True:
            lines = self.screen()
            if any(holds in line for line in lines) if isinstance(holds, str) else holds(lines):
                return lines
            assert time.monotonic() < deadline, f"never seen: {holds}\n" + "\n".join(lines)
            time.sleep(0.05)

    def close(self) -> None:
        self._tmux("kill-server")
