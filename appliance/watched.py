# SPDX-License-Identifier: GPL-2.0-or-later
"""Tasks whose failure is not overlooked: what escapes one is a defect, and a defect ends the service in order.

A task that dies unseen would leave a VM that looks protected and is not. The other host is the better place then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def watched(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run `work` as a task; an exception that escapes it goes to the loop's exception handler, marked."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    task.add_done_callback(_report)
    return task


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": f"the task {task.get_name()!r} failed", "exception": error, "watched": True})


def is_defect(context: dict[str, Any]) -> bool:
    """Does this context of an exception handler come from a watched task, or from a callback of the loop?"""
    return "watched" in context or "handle" in context
