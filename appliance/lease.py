# SPDX-License-Identifier: GPL-2.0-or-later
"""The lease of the host that runs a VM: until when its frames may pass and its writes may reach shared volumes.

Alone the host renews it by itself, so that one whose service stands still goes silent all the same. Protected, the peer
gives it: it does not speak in this host's place before the moment that it names.
"""

from __future__ import annotations

import asyncio
import time

from appliance.guard import Guard
from appliance.volumes import Volumes
from appliance.watched import watched


class Lease:
    """See the module. `seconds`: how long it is alone."""

    def __init__(self, name: str, guard: Guard, volumes: Volumes | None, seconds: float) -> None:
        self._name, self._guard, self._volumes, self._seconds = name, guard, volumes, seconds
        self._renewer: asyncio.Task[None] | None = None
        self._heard = 0.0
        self._more = asyncio.Event()
        self._by_peer = False

    def alone(self) -> None:
        """Renew it by oneself from now on. Idempotent."""
        self._by_peer = False
        if self._renewer is None:
            self._renewer = watched(self._renew(), f"{self._name} lease")

    def by_peer(self) -> None:
        """What the peer says counts from now on, and what it has said."""
        self.end()
        self._by_peer = True
        self._set(self._heard)

    def end(self) -> None:
        """Renew it no more. Idempotent."""
        self._by_peer = False
        if self._renewer is not None:
            self._renewer.cancel()
            self._renewer = None

    def heard(self, until: float) -> None:
        """The peer does not speak in this host's place before `until` (monotonic seconds)."""
        self._heard = max(self._heard, until)
        self._more.set()
        if self._by_peer:
            self._set(self._heard)

    async def granted(self) -> None:
        """Return when the peer's word holds."""
        while self._heard <= time.monotonic():
            self._more.clear()
            await self._more.wait()

    async def _renew(self) -> None:
        while True:
            self._set(time.monotonic() + self._seconds)
            await asyncio.sleep(self._seconds / 4)

    def _set(self, until: float) -> None:
        self._guard.lease(until)
        if self._volumes is not None:
            self._volumes.lease(until)
