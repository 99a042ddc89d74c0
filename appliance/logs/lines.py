# SPDX-License-Identifier: GPL-2.0-or-later
"""How a log record becomes a line: for people, for the journal of systemd, or as JSON for programs.

A message of the form "%s: ..." whose first argument is the name of a VM is about that VM: its term and epoch come with
it. Control characters in messages are escaped, so that what a stranger sent cannot look like a line of ours.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable
from enum import StrEnum
from typing import Any

PRIORITY = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}
"""Level to syslog priority, as in sd-daemon(3)."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
Position = Callable[[str], tuple[int, int] | None]
"""Term and epoch of the VM of that name; None when there is no such VM."""
PREFIX = "holdfast."


class Form(StrEnum):
    """Of the lines. AUTO: for the journal if that reads standard error, else for people."""

    AUTO = "auto"
    TEXT = "text"
    JOURNAL = "journal"
    JSON = "json"


def chosen(form: Form, fd: int = 2) -> Form:
    """What AUTO comes to: systemd names device and inode of the stream in JOURNAL_STREAM, see systemd.exec(5)."""
    if form is not Form.AUTO:
        return form
    try:
        status = os.fstat(fd)
    except OSError:
        return Form.TEXT
    journal = os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    return Form.JOURNAL if journal else Form.TEXT


def fields(record: logging.LogRecord, position: Position) -> dict[str, Any]:
    """What the record says, and of which VM."""
    about: dict[str, Any] = {}
    first = record.args[0] if isinstance(record.args, tuple) and record.args else None
    if isinstance(first, str) and str(record.msg).startswith("%s: "):
        where = position(first)
        if where is not None:
            about = {"vm": first, "term": where[0], "epoch": where[1]}
    return {"at": record.created, "level": record.levelname.lower(), "module": record.name.removeprefix(PREFIX),
            "message": escaped(record.getMessage()), **about}


def line(record: logging.LogRecord, position: Position, form: Form) -> str:
    """The record as one line, without its end; a traceback follows in further lines, or as a field."""
    found = fields(record, position)
    trace = "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
    if form is Form.JSON:
        return json.dumps({**found, "traceback": trace} if trace else found, ensure_ascii=False)
    about = "".join(f" {key}={found[key]}" for key in ("vm", "term", "epoch") if key in found)
    if form is Form.JOURNAL:
        head = f"<{PRIORITY.get(record.levelname, 6)}>"
        said = f"{found['module']}: {found['message']}{about}"
        return "\n".join(head + one for one in (said, *map(escaped, trace.splitlines())))
    clock = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
    about = f" [term {found['term']} epoch {found['epoch']}]" if about else ""
    said = f"{clock} {record.levelname:<7} {record.name}: {found['message']}{about}"
    return "\n".join((said, *map(escaped, trace.splitlines())))


def escaped(text: str) -> str:
    """Without control characters."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)
