# SPDX-License-Identifier: GPL-2.0-or-later
"""A peer in a process of its own that can be stopped and killed; prints what its handler hears, a JSON line each."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from appliance import config as cfg
from appliance.peer import Peer
from tests.links.cables import Cables, until
from vmlink.wire import Message

ROOT = Path(__file__).resolve().parents[2]


def _say(event: str, **more: Any) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


class _Printer:
    def peer_up(self) -> None:
        _say("up")

    def peer_down(self, reason: str, doubtful: bool, speaks_until: float) -> None:
        _say("down", reason=reason, doubtful=doubtful)

    def peer_heard(self, until: float) -> None:
        pass

    async def message(self, message: Message) -> None:
        _say("message", epoch=message.epoch)


async def _main(place: str, timing: cfg.Timing) -> None:
    peer = Peer(Cables().config(place, timing=timing), _Printer(), 8 << 20)
    peer.start()
    await asyncio.Event().wait()


class Node:
    """Such a process as its test sees it."""

    def __init__(self, cables: Cables, place: str, timing: cfg.Timing, log: Path) -> None:
        self._log = log
        with log.open("w") as out:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", cables.namespaces[place], sys.executable, "-m", "tests.links.node", place,
                 str(timing.hello), str(timing.timeout), str(timing.reconnect)], stdout=out, stderr=out, cwd=ROOT)
        until("the node is up", lambda: self.said("up") or self.process.poll() is not None)
        assert self.said("up"), log.read_text()

    def said(self, event: str) -> list[dict[str, Any]]:
        """Every such event so far."""
        whole = [line for line in self._log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
        return [said for said in map(json.loads, whole) if said["event"] == event]

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)


if __name__ == "__main__":
    _hello, _timeout, _reconnect = map(float, sys.argv[2:5])
    asyncio.run(_main(sys.argv[1], cfg.Timing(hello=_hello, timeout=_timeout, reconnect=_reconnect)))
