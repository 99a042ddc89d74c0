# SPDX-License-Identifier: GPL-2.0-or-later
"""The backup's end of the stream: which first copy it takes."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from appliance import backup, core
from appliance.backup import Backup
from appliance.first_copy import SyncOffer
from appliance.journal import Journal
from vmlink.wire import Message, Type, encode_frames

COPY = 3


def make(monkeypatch: pytest.MonkeyPatch, heard: list[core.Event]) -> Backup:
    ram: Any = SimpleNamespace(pages=np.zeros((4, 4096), np.uint8), size=4 * 4096)
    vm: Any = SimpleNamespace(limits=SimpleNamespace(in_flight=1 << 20, replay_log=1 << 20, disk=1 << 20))
    own: Any = SimpleNamespace(disks={}, slots={})

    async def offer_of(*_: object) -> object:
        return own

    async def follow(sizes: dict[str, int], slots: dict[str, int]) -> None:
        raise AssertionError("the disks are the same")

    monkeypatch.setattr(backup, "offer_of", offer_of)
    monkeypatch.setattr(backup, "understood", lambda *_: own)
    return Backup("web", vm, 1, COPY, own, ram, None, None, own, Journal("web"), heard.append, follow)


@pytest.mark.parametrize(("copy", "taken"), [(COPY, True), (COPY - 1, False), (0, False), (COPY + 1, False)])
def test_a_first_copy_meant_for_another_replica_is_refused(copy: int, taken: bool,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[core.Event] = []
    taker = make(monkeypatch, heard)

    asyncio.run(taker.message(Message(Type.SYNC, 1, 7, copy, (b"{}",))))

    assert heard == ([core.ReplicaReady()] if taken else [])
    assert taker.replica.term == (7 if taken else 0)


def test_two_hosts_that_see_different_volumes_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[core.Event] = []
    taker = make(monkeypatch, heard)
    here = SyncOffer(4 * 4096, "7.2", "m", {}, {"vol": "iqn.2026-01.example:a/1 of 1024 bytes"})

    async def offer_of(*_: object) -> object:
        return here

    there = msgspec.structs.replace(here, volumes={"vol": "iqn.2026-01.example:a/2 of 1024 bytes"})
    monkeypatch.setattr(backup, "offer_of", offer_of)
    monkeypatch.setattr(backup, "understood", lambda *_: there)
    asyncio.run(taker.message(Message(Type.SYNC, 1, 7, COPY, (b"{}",))))
    [unfit] = heard
    assert isinstance(unfit, core.ReplicaUnfit) and "a/2 of 1024 bytes'} there" in unfit.cause
    assert "the very same volumes" in unfit.cause and taker.replica.term == 0


def test_output_of_an_epoch_that_is_not_whole_is_known_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    taker = make(monkeypatch, [])
    frames = [(5, b"\0" * 74), (6, b"\1" * 74)]

    async def scene() -> None:
        await taker.message(Message(Type.SYNC, 1, 7, COPY, (b"{}",)))
        assert taker.discarded() == (1, [])
        await taker.message(Message(Type.OUTBOUND, 1, 7, 1, (encode_frames(frames),)))

    asyncio.run(scene())
    assert taker.discarded() == (1, [frame for _, frame in frames])
    assert taker.unreleased() == []
