# SPDX-License-Identifier: GPL-2.0-or-later
"""Carriers: right whatever happens to the device, and without waiting for the kernel's configuration lock."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.carrier import CarrierWatch

_serial = itertools.count()
SCENE = """
import asyncio, subprocess, sys
from appliance.carrier import CarrierWatch

def ip(*words):
    subprocess.run(["ip", "link", *words], check=True)

async def main():
    watch = CarrierWatch(lambda: None)
    asked, glink = [], watch._glink
    watch._glink = lambda name: (asked.append(name), glink(name))[1]
    seen = [watch.carrier("va"), watch.carrier("vc")]
    for device, state in (("vb", "down"), ("vb", "up"), ("va", "down"), ("va", "up")):
        ip("set", device, state)
        seen.append(watch.carrier("va"))
    ip("set", "vb", "down")
    ip("set", "vb", "up")
    seen.append(watch.carrier("va"))
    before = len(asked)
    seen += [watch.carrier("va") for _ in range(100)]
    few = len(asked) - before
    ip("del", "va")
    seen.append(watch.carrier("va"))
    ip("add", "va", "type", "veth", "peer", "vb")
    ip("set", "va", "up")
    ip("set", "vb", "up")
    watch._read()
    seen += [watch.carrier("va"), watch.carrier("va")]
    watch.close()
    print([int(one) for one in seen[:7]], sum(seen[7:107]), few < 3, [int(one) for one in seen[107:]])

asyncio.run(main())
"""


@pytest.fixture
def namespace() -> Iterator[str]:
    if os.geteuid():
        pytest.skip("needs root")
    name = f"hfcar-{os.getpid()}-{next(_serial)}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    try:
        subprocess.run(["ip", "-n", name, "link", "add", "va", "type", "veth", "peer", "vb"], check=True, timeout=20)
        for device in ("va", "vb"):
            subprocess.run(["ip", "-n", name, "link", "set", device, "up"], check=True, timeout=20)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=20)


def test_a_device_in_all_its_states(namespace: str) -> None:
    """In a process of its own: /sys shows the devices of the namespace in which it was mounted."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(["ip", "netns", "exec", namespace, sys.executable, "-c", SCENE], cwd=root, text=True,
                          capture_output=True, timeout=60)
    assert done.stdout.split("] ") == ["[1, 0, 0, 1, 0, 1, 1", "100 True [0, 1, 1]\n"], done.stderr


def test_a_device_that_only_the_kernel_is_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where /sys does not tell, as in another namespace, every look asks."""
    async def scene() -> None:
        watch = CarrierWatch(lambda: None)
        asked: list[str] = []
        ask: Callable[[str], bool] = watch._glink
        monkeypatch.setattr(watch, "_glink", lambda name: asked.append(name) or ask(name))
        monkeypatch.setattr(watch, "_count", lambda name: b"")
        assert watch.carrier("lo") and watch.carrier("lo") and len(asked) == 2
        watch.close()

    asyncio.run(scene())
