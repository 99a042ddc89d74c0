# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an arbiter's records lie: read one, and replace it if nobody did meanwhile."""

from __future__ import annotations

from typing import Protocol

from appliance.arbiter.grants import Record


class Register(Protocol):
    """One record for each VM of a pair, each with a version that every replacement changes.

    A request that was lost on its way and arrives late does nothing: the version it names is over by then.
    """

    async def read(self, vm: str) -> tuple[int, Record]:
        """Version and record; version 0 and the empty record when there is none yet.

        Raises Unavailable, or TimeoutError after a bounded time.
        """

    async def swap(self, vm: str, version: int, record: Record) -> bool:
        """Replace the record of this version, durably. False: it is another version by now. Raises as `read`."""

    async def close(self) -> None:
        """Let go of connections."""
