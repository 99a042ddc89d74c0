# SPDX-License-Identifier: GPL-2.0-or-later
"""A control socket that answers as a host of a pair does, and says what a test wants it to say."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from appliance.control.server import ControlServer
from appliance.errors import Unavailable
from appliance.registry import access
from tests.leftovers import last_turns


def vm(role: str = "primary", phase: str = "protected", peer: dict[str, Any] | None = None) -> dict[str, Any]:
    """One VM as events and status tell it."""
    return {"role": role, "phase": phase, "reason": f"it is {phase}", "term": 7, "epoch": 42, "paused": False,
            "peer": {"role": "backup", "phase": "standby", "term": 7} if peer is None else peer}


class Pretender:
    """Answers on `path`. What it was asked is in `asked`; `replies` are its answers by verb."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.vms: dict[str, dict[str, Any]] = {"web1": vm()}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, Any] = {}
        self._readers: set[asyncio.Queue[dict[str, Any]]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: ControlServer | None = None
        self.start()

    def start(self) -> None:
        verbs = {name: self._verb(name) for name in ("status", "health", "switchover", "drain", "fence", "protect",
                                                     "unprotect", "history", "log", "log-set", "log-tail",
                                                     "disk-resize", "disk-add", "disk-remove")}
        self._server = ControlServer(self.path, verbs, {"events": self._events}, access=access)
        self._do(self._server.start())

    def stop(self) -> None:
        """It ends; `start` brings it back."""
        assert self._server is not None
        self._do(self._server.close())

    def close(self) -> None:
        self.stop()
        self._do(last_turns())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _verb(self, name: str) -> Any:
        async def answer(args: dict[str, Any]) -> dict[str, Any]:
            self.asked.append((name, args))
            reply = self.replies.get(name)
            if reply is None:
                raise Unavailable(f"nothing to say to {name}", "set it in the test")
            if isinstance(reply, Exception):
                raise reply
            found: dict[str, Any] = reply(args) if callable(reply) else reply
            return found

        return answer

    async def _events(self, args: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(("events", args))
        heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._readers.add(heard)
        try:
            at = time.time()
            yield {"at": at, "event": "state", "what": "host", "host": "alpha", "condition": {"reasons": []}}
            yield {"at": at, "event": "state", "what": "peer", "peer": "beta", "state": "up"}
            for link in ("link0", "link1"):
                yield {"at": at, "event": "state", "what": "link", "link": link, "state": "up", "reason": ""}
            for name, stands in self.vms.items():
                if args.get("vm") in (None, "", name):
                    yield {"at": at, "event": "state", "what": "vm", "vm": name, **stands}
            yield {"at": at, "event": "end-of-state", "seq": 1}
            while not args.get("now"):
                yield await heard.get()
        finally:
            self._readers.discard(heard)

    def tell(self, event: str, about: str = "", **fields: Any) -> None:
        """It happens now."""
        told = {"seq": 2, "at": time.time(), "event": event, **({"vm": about} if about else {}), **fields}
        self._loop.call_soon_threadsafe(lambda: [reader.put_nowait(told) for reader in self._readers])

    def move(self, name: str, role: str, phase: str, reason: str) -> None:
        """A VM changes where it stands."""
        was = self.vms[name]["phase"]
        self.vms[name] |= {"role": role, "phase": phase, "reason": reason}
        self.tell(phase, name, was=was, role=role, term=7, reason=reason)

    @property
    def readers(self) -> int:
        return len(self._readers)
