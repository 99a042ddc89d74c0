# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures of the tests of the network side; each makes its own namespaces and fails if a device is left."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from appliance.front import Front, FrontSpec
from tests.net.stage import GUEST_MAC, Stage


@pytest.fixture
def stage() -> Iterator[Stage]:
    made = Stage()
    try:
        made.build()
        before = made.devices()
        yield made
        left = made.devices() - before - {"vm0"}
        assert not left, f"left behind: {left}"
    finally:
        made.tear_down()


Scene = Callable[[Front], Awaitable[None]]


@pytest.fixture
def play(stage: Stage) -> Callable[[Scene], None]:
    """Run a coroutine with a front on the stage, shut, without a VM; the front is taken away afterwards."""

    def play_it(scene: Scene, limit_bytes: int = 64 << 20) -> None:
        async def whole() -> None:
            spec = FrontSpec("web1", GUEST_MAC, ("10.77.9.10", "fd77:9::10"), "br0", limit_bytes)
            front = await Front.create(spec)
            try:
                await asyncio.wait_for(scene(front), 60)
            finally:
                await front.close()

        asyncio.run(whole())

    return play_it
