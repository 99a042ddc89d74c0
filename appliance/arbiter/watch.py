# SPDX-License-Identifier: GPL-2.0-or-later
"""Can the arbiter be asked? Looked at all the time, because the moment in which it is needed is the wrong one."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from appliance.arbiter.arbiter import Arbiter
from appliance.arbiter.grants import Answer

LOOK = 5.0
"""Seconds between two looks."""
log = logging.getLogger("holdfast.arbiter")


class ArbiterWatch:
    """See the module."""

    def __init__(self, arbiter: Arbiter) -> None:
        self._arbiter = arbiter
        self.seen: Answer | None = None
        """What the last look showed; None before the first."""

    async def run(self) -> None:
        while True:
            seen = await self._arbiter.look()
            if self.seen is None or seen.granted != self.seen.granted:
                log.log(logging.INFO if seen.granted else logging.WARNING, "arbiter %s: %s", self._arbiter.name,
                        seen.reason)
            self.seen = seen
            await asyncio.sleep(LOOK)

    def status(self) -> dict[str, Any]:
        """For the status reply."""
        return {"kind": self._arbiter.name, "reachable": self.seen.granted if self.seen else None,
                "reason": self.seen.reason if self.seen else "not asked yet"}
