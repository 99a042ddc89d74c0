# SPDX-License-Identifier: GPL-2.0-or-later
"""The backup's end of the stream: which first copy it takes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from appliance import backup, core
from appliance.backup import Backup
from appliance.journal import Journal
from vmlink.wire import Message, Type

COPY = 3


@pytest.mark.parametrize(("copy", "taken"), [(COPY, True), (COPY - 1, False), (0, False), (COPY + 1, False)])
def test_a_first_copy_meant_for_another_replica_is_refused(copy: int, taken: bool,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[core.Event] = []
    ram: Any = SimpleNamespace(pages=np.zeros((4, 4096), np.uint8), size=4 * 4096)
    vm: Any = SimpleNamespace(limits=SimpleNamespace(in_flight=1 << 20, replay_log=1 << 20, disk=1 << 20))
    own: Any = object()

    async def offer_of(*_: object) -> object:
        return own

    monkeypatch.setattr(backup, "offer_of", offer_of)
    monkeypatch.setattr(backup, "understood", lambda *_: own)
    taker = Backup("web", vm, 1, COPY, own, ram, None, own, Journal("web"), heard.append)

    asyncio.run(taker.message(Message(Type.SYNC, 1, 7, copy, (b"{}",))))

    assert heard == ([core.ReplicaReady()] if taken else [])
    assert taker.replica.term == (7 if taken else 0)
