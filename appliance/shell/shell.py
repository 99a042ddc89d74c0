# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop of the shell: prompt, verb, prompt; and the same for the commands of a script."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import ThreadedCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.patch_stdout import patch_stdout
from prompt_toolkit.styles import Style

from appliance import __version__
from appliance.cli import command_line, events
from appliance.cli.screen import Screen
from appliance.errors import UsageError
from appliance.exits import Exit
from appliance.shell.lines import OWN, Command, VerbCompleter, commands, offered
from appliance.shell.situation import Situation

WAITING = 200
"""Lines about events that wait while a verb runs; the oldest are dropped, and counted."""
INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""
_COLOURS = Style.from_dict({"good": "ansigreen", "bad": "ansired bold", "changing": "ansiyellow",
                            "bottom-toolbar": "noreverse"})


class Shell:
    """`control` and `colour` are the defaults of every verb. `quiet`: no events above the prompt."""

    def __init__(self, control: str, colour: str, *, quiet: bool = False) -> None:
        self._defaults = {"control": control, "color": colour}
        self._screen = Screen(colour=colour)
        self._quiet = quiet
        self._lines: deque[str] = deque(maxlen=WAITING)
        self._dropped = 0
        self._prompting = False
        self._lock = threading.Lock()
        self.situation = Situation(control, self._redraw, self._happened)
        self._session: PromptSession[str] | None = None

    # --- commands ---

    def do(self, line: str) -> int:
        """Run the commands of a line; returns the exit code of the last that ran."""
        code: int = Exit.OK
        try:
            for command in commands(line):
                if command.only_if and code != Exit.OK:
                    break
                code = self._one(command)
        except UsageError as error:
            print(f"holdfast: {error.message}\n  {error.hint}", file=sys.stderr)
            return Exit.USAGE
        return code

    def _one(self, command: Command) -> int:
        words = list(command.words)
        if words == ["help"]:
            print(self.help())
            return Exit.OK
        with self._output(command.pipe):
            try:
                return command_line.execute(words, self._defaults, shell=True)
            except SystemExit as ended:  # --help
                return int(ended.code or 0)
            except BrokenPipeError:
                return Exit.OK

    @contextlib.contextmanager
    def _output(self, pipe: str) -> Iterator[None]:
        """Standard output goes to the command `pipe`, if there is one."""
        if not pipe:
            yield
            return
        with subprocess.Popen(["/bin/sh", "-c", pipe], stdin=subprocess.PIPE, text=True) as reader:
            assert reader.stdin is not None
            with contextlib.suppress(BrokenPipeError), reader.stdin, contextlib.redirect_stdout(reader.stdin):
                yield

    def help(self) -> str:
        """The verbs of the shell."""
        names = [*((" ".join(verb.names), verb.summary) for verb in offered()), *OWN.items()]
        wide = max(len(name) for name, _ in names)
        rows = [f"  {name:<{wide}}  {text}" for name, text in names]
        return "\n".join([*rows, "", "help VERB says more. A line may hold several: verb; verb && verb | grep word."])

    # --- at the prompt ---

    def run(self) -> int:
        """Until the user leaves; returns the exit code of the last verb."""
        code: int = Exit.OK
        plain = not self._screen.colour
        self._session = PromptSession(
            history=_history(), completer=ThreadedCompleter(VerbCompleter(self.situation)),
            complete_while_typing=False, bottom_toolbar=self.situation.bar, style=Style([]) if plain else _COLOURS,
            color_depth=ColorDepth.DEPTH_1_BIT if plain else ColorDepth.DEPTH_4_BIT)
        print(f"holdfast {__version__}: help names the verbs, Tab completes, Ctrl-D leaves")
        self.situation.start()
        try:
            while True:
                try:
                    line = self._ask()
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    return code
                if line.strip() in OWN:
                    return code
                try:
                    code = self.do(line)
                except KeyboardInterrupt:
                    print()  # after the terminal's ^C
                    code = INTERRUPTED
        finally:
            self.situation.close()

    def _ask(self) -> str:
        assert self._session is not None
        with patch_stdout(raw=True):
            with self._lock:
                self._prompting = True
                self._flush()
            try:
                return self._session.prompt(self.situation.prompt)
            finally:
                with self._lock:
                    self._prompting = False

    def _redraw(self) -> None:
        """The prompt and the bar show something that has changed."""
        if self._session is not None and self._session.app.is_running:
            self._session.app.invalidate()

    def _happened(self, event: dict[str, Any]) -> None:
        """Above the prompt at once, or once the verb that runs has ended."""
        if self._quiet:
            return
        with self._lock:
            if len(self._lines) == WAITING:
                self._dropped += 1
            self._lines.append(events.line(event, self._screen))
            if self._prompting:
                self._flush()

    def _flush(self) -> None:
        if self._dropped:
            print(f"{self._dropped} events before these are not shown: holdfast events shows all")
        while self._lines:
            print(self._lines.popleft())
        self._dropped = 0
        sys.stdout.flush()


def _history() -> History:
    """Kept between sessions where the user has a home that can be written."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    file = base / "holdfast" / "shell-history"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def script(control: str, colour: str, line: str) -> int:
    """`shell -c`: the commands of a line, without a prompt."""
    return Shell(control, colour).do(line)


