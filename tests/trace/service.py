# SPDX-License-Identifier: GPL-2.0-or-later
"""A service small enough for a fast test: a real front, a real control socket, and epochs that the test makes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from appliance import registry
from appliance.cli import main
from appliance.control.server import ControlServer
from appliance.front import Front
from appliance.journal import Journal
from appliance.trace.tracing import Tracing
from appliance.trace.trail import Trail
from tests.net.stage import tap_write

VM = "web1"


def _vm(name: str, front: Front, trail: Trail) -> SimpleNamespace:
    """What the trace asks a protected VM for."""
    machine = SimpleNamespace(front=front, primary=SimpleNamespace(committed=0), backup=None)
    return SimpleNamespace(name=name, machine=machine, state=SimpleNamespace(term=1, phase="protected"),
                           journal=SimpleNamespace(trail=trail))


class Service:
    """Of one VM whose frames the test sends. Use `running`."""

    def __init__(self, front: Front, tap: int, place: Path, other: Front | None = None) -> None:
        """`tap`: where the test writes what the VM sends; -1 for a VM that sends by itself. `other`: of a second VM,
        about which nothing happens."""
        self.front, self._tap, self.path = front, tap, place / "control.sock"
        self.trail = Journal(VM).trail
        front.sends_itself = self.trail.sends_itself
        self._epoch = 0
        vms = {VM: _vm(VM, front, self.trail)} | ({"web2": _vm("web2", other, Trail("web2"))} if other else {})
        self.tracing = Tracing("alpha", "beta", vms)  # type: ignore[arg-type]
        pushed = {"trace": self.tracing.stream, "trace-epochs": self.tracing.epochs}
        self._control = ControlServer(self.path, {"status": self._status}, pushed=pushed, access=registry.access)

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, front: Front, place: Path, other: Front | None = None) -> AsyncIterator[Service]:
        tap = await front.attach_vm()
        made = cls(front, tap, place, other)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()
            os.close(tap)

    async def _status(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"vms": {VM: {}, "web2": {}}}

    async def start(self) -> None:
        await self._control.start()

    async def stop(self) -> None:
        await self._control.close()

    async def traced(self) -> None:
        """Wait until somebody traces."""
        async with asyncio.timeout(10):
            while not self.trail.listeners:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    # --- the VM, and its epochs ---

    def open(self) -> None:
        """Speak, and hold what the VM sends from now on."""
        self.front.open(1)
        self.trail.runs_alone(False, self.front.gate.span()[1])

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            tap_write(self._tap, frame)

    def pause(self) -> Any:
        """The epoch ends; its mark."""
        self._epoch += 1
        at_ns = time.monotonic_ns()
        mark = self.front.gate.mark()
        self.trail.marked(at_ns, 1, self._epoch, mark.seq)
        self.trail.sent(1, self._epoch)
        return mark

    async def commit(self, mark: Any) -> None:
        self.trail.acked(1, self._epoch, time.monotonic())
        await self.front.gate.release(mark)
        self.trail.released(1, self._epoch, time.monotonic())

    async def epoch(self, *frames: bytes) -> None:
        """One that has these frames, committed and released."""
        self.send(*frames)
        await self.commit(self.pause())

    # --- whoever traces ---

    @contextlib.asynccontextmanager
    async def command(self, *words: str, code: int = 0) -> AsyncIterator[None]:
        """`holdfast ...` beside what the test does, once it is on; waited for at the end."""
        ready, told = os.pipe()
        extra = ["--ready-fd", str(told)] if words[:1] == ("trace",) and "epochs" not in words else []
        running = asyncio.ensure_future(asyncio.to_thread(main, [*words, "--control", str(self.path), *extra]))
        try:
            if extra:
                await asyncio.wait_for(asyncio.to_thread(os.read, ready, 6), 10)
            yield
            assert await asyncio.wait_for(running, 30) == code
        finally:
            os.close(ready)
            await asyncio.wait([running], timeout=30)
