# SPDX-License-Identifier: GPL-2.0-or-later
"""A control server in a thread of its own, as the service has it in its loop."""

import asyncio
import contextlib
import gc
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.control.server import ControlServer
from appliance.errors import Unavailable, Unsafe
from appliance.registry import Access
from tests.leftovers import last_turns


class Running:
    """A running server and what its loop can tell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.loop = asyncio.new_event_loop()
        self.server = ControlServer(
            path, {"echo": self._echo, "look": self._echo, "refuse": self._refuse, "break": self._break,
                   "big": self._big, "stall": self._stall},
            {"count": self._count, "wait": self._wait, "flood": self._flood, "break-off": self._break_off},
            access=lambda verb: Access.GROUP if verb == "look" else Access.ROOT)
        self.cancelled = self.streams = self.echoes = 0
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.run(self.server.start())

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def stop(self) -> None:
        self.run(self.server.close())
        self.run(last_turns())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _echo(self, args: dict[str, Any]) -> dict[str, Any]:
        self.echoes += 1
        return args

    async def _refuse(self, args: dict[str, Any]) -> dict[str, Any]:
        raise Unsafe("the backup is behind", "wait")

    async def _break(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"figure": 1 // 0}

    async def _big(self, args: dict[str, Any]) -> dict[str, Any]:
        return {"text": "x" * args["bytes"]}

    async def _stall(self, args: dict[str, Any]) -> dict[str, Any]:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1
        return {}


    async def _count(self, args: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        for number in range(args["to"]):
            yield {"n": number}

    async def _wait(self, args: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.streams += 1
        try:
            yield args["first"]
            await asyncio.Event().wait()
        finally:
            self.streams -= 1

    async def _flood(self, args: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.streams += 1
        try:
            while True:
                yield {"text": "x" * 100_000}
                await asyncio.sleep(0)
        finally:
            self.streams -= 1

    async def _break_off(self, args: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        yield {"n": 0}
        raise Unavailable("no more of it", "wait")


def _open() -> set[str]:
    """The sockets and pipes of this process, by inode."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(entry))
    return {link for link in found if link.startswith(("socket:", "pipe:"))}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    gc.collect()
    before = _open()
    running = Running(tmp_path / "control.sock")
    yield running
    running.stop()
    assert not running.path.exists(), "the socket is left behind"
    deadline = time.monotonic() + 5
    while left := _open() - before:
        assert time.monotonic() < deadline, f"left open: {left}"
        gc.collect()  # what a raised error still refers to


@pytest.fixture
def until() -> Callable[[Callable[[], object]], None]:
    """Waits until something holds, at most 5 s."""

    def wait(holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + 5
        while not holds():
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(0.005)

    return wait
