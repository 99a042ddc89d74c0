# SPDX-License-Identifier: GPL-2.0-or-later
"""The log of a service: its levels, which may change while it runs, its last lines, and what was lost of it."""

from __future__ import annotations

import difflib
import logging
import threading
from collections import Counter, deque
from typing import Any

from appliance.errors import UsageError
from appliance.logs.lines import PREFIX, Form, Position, chosen, line
from appliance.logs.writer import Writer

LEVELS = ("debug", "info", "warning", "error")
ROOT = "holdfast"
KEPT = 1000
"""Lines that are remembered for who asks."""
LONGEST = 4000
"""Characters of one that is."""
FLUSH = 1.0
"""Seconds in which what waits may still be written when the service ends."""
log = logging.getLogger("holdfast.log")


class Logs(logging.Handler):
    """Takes every record, from any thread, and waits for nobody."""

    def __init__(self, fd: int, form: Form) -> None:
        super().__init__()
        self._form = chosen(form, fd)
        self.position: Position = lambda _: None
        """Where a VM stands; whoever knows sets it."""
        self._writer = _Told(fd, self._form)
        self._kept: deque[str] = deque(maxlen=KEPT)
        self._reading = threading.Lock()
        self.counts: Counter[str] = Counter(dict.fromkeys((*LEVELS, "critical"), 0))
        """Records since the service started, by level."""

    @property
    def lost(self) -> int:
        """Lines that could not be written since the service started."""
        return self._writer.lost

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = line(record, self.position, self._form)
        except Exception:  # a message that does not fit its arguments: a defect, but no reason to fail
            text = f"{record.name}: a message that cannot be told: {str(record.msg)[:200]!r}"
        self.counts[record.levelname.lower()] += 1
        with self._reading:
            self._kept.append(text[:LONGEST])
        self._writer.put(text.encode(errors="backslashreplace") + b"\n")

    def close(self) -> None:
        self._writer.close(FLUSH)
        super().close()

    # --- asked ---

    async def levels(self, args: dict[str, Any]) -> dict[str, Any]:
        """holdfast.log/1: the levels in force, and what was lost."""
        modules = {name.removeprefix(PREFIX): logging.getLogger(name) for name in _modules()}
        return {"schema": "holdfast.log/1", "level": _name(logging.getLogger(ROOT)),
                "modules": {name: _name(one) for name, one in sorted(modules.items())},
                "own": sorted(name for name, one in modules.items() if one.level != logging.NOTSET),
                "lines": dict(self.counts), "lost_lines": self.lost}

    async def set(self, args: dict[str, Any]) -> dict[str, Any]:
        """Set the `level` of a `module`, or of all that have none of their own; level "default" takes its own away."""
        level, module = args.get("level"), args.get("module") or ""
        if level not in LEVELS and not (module and level == "default"):
            known = ", ".join(LEVELS) + (", default" if module else "")
            raise UsageError(f"{str(level)[:40]!r} is no level", f"choose from {known}")
        logger = logging.getLogger(ROOT if not module else _known(str(module)))
        logger.setLevel(logging.NOTSET if level == "default" else str(level).upper())
        log.info("the level of %s is %s", module or "the log", _name(logger))
        return await self.levels({})

    async def tail(self, args: dict[str, Any]) -> dict[str, Any]:
        """holdfast.log-tail/1: the last `lines` lines, oldest first."""
        count = args.get("lines", 20)
        if not isinstance(count, int) or not 1 <= count <= KEPT:
            raise UsageError(f"{str(count)[:20]!r} is no number of lines", f"choose from 1 to {KEPT}")
        with self._reading:
            lines = list(self._kept)[-count:]
        return {"schema": "holdfast.log-tail/1", "lines": lines, "lost_lines": self.lost}


class _Told(Writer):
    """Tells of a gap in the form of the other lines."""

    def __init__(self, fd: int, form: Form) -> None:
        super().__init__(fd)
        self._form = form

    def notice(self, lost: int) -> bytes:
        record = logging.LogRecord("holdfast.log", logging.WARNING, __file__, 0,
                                   "%d lines are missing here: they were not read in time", (lost,), None)
        return line(record, lambda _: None, self._form).encode() + b"\n"


def start(level: str, form: Form = Form.AUTO, fd: int = 2) -> Logs:
    """Let all that is logged from now on go to `fd`. Close what it returns at the end."""
    logs = Logs(fd, form)
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(logs)
    root.setLevel(logging.WARNING)  # of libraries
    logging.getLogger(ROOT).setLevel(level.upper())
    logging.raiseExceptions = False  # nothing of logging itself may write to a pipe that nobody reads
    return logs


def _modules() -> list[str]:
    return [name for name in logging.root.manager.loggerDict if name.startswith(PREFIX)]


def _known(module: str) -> str:
    """The logger of a module. Raises UsageError for one that does not exist."""
    name = PREFIX + module.removeprefix(PREFIX)
    known = _modules()
    if name not in known:
        short = sorted(one.removeprefix(PREFIX) for one in known)
        near = difflib.get_close_matches(module[:40], short, 1)
        raise UsageError(f"there is no module {module[:40]!r}",
                         f"did you mean {near[0]}?" if near else f"known are {', '.join(short)}")
    return name


def _name(logger: logging.Logger) -> str:
    return logging.getLevelName(logger.getEffectiveLevel()).lower()
