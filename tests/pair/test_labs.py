# SPDX-License-Identifier: GPL-2.0-or-later
"""Two labs side by side do not know of each other; one that is taken down leaves nothing, not even in the kernel."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.lab import blueprint, topology
from appliance.lab.blueprint import Options
from appliance.lab.topology import HOSTS
from tests.lab.naming import traces
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def second(fresh_name: Callable[[], str]) -> Iterator[Pair]:
    pair = Pair.up(Options(name=fresh_name()))
    yield pair
    pair.down()


def test_two_labs_side_by_side_and_the_end_of_one(pair: Pair, second: Pair) -> None:
    primary, backup = second.protected()
    undisturbed, term = pair.protected(), pair.term()
    second.lab.fault("crash", primary)
    until(f"{backup} takes over", lambda: second.vm(backup).get("role") == "primary")
    second.client.goes_on()
    second.heal(primary)
    assert second.protected() == (backup, primary)
    second.sound(primary, backup)
    assert (pair.protected(), pair.term()) == (undisturbed, term)

    name, loaded = second.lab.name, _loaded(second)
    namespaces = {(topology.NETNS_DIR / topology.netns(name, place)).stat().st_ino for place in topology.PLACES}
    processes = [second.lab.service(host) for host in HOSTS]
    memory = _memory_files(namespaces)
    assert [len(found) for found in loaded.values()] == [6, 14], \
        "two hosts, with gate, inbound and guard each; their states, and two maps of the trace in both objects"
    assert len(memory) == 2, "each QEMU has its memory"
    removed = second.lab.down()
    assert any("namespace" in one for one in removed)
    assert traces(name) == [] and not blueprint.directory(name).exists()
    assert not [found for found in processes if found is not None and found.alive]
    assert not _memory_files(namespaces)
    until("the kernel has let go of the programs and maps", lambda: not _still_there(loaded))
    pair.sound(undisturbed[0])


def _bpftool(*words: str) -> Any:
    told = subprocess.run(["bpftool", "-j", *words], capture_output=True, text=True, timeout=20, check=False)
    return json.loads(told.stdout or "[]")


def _loaded(pair: Pair) -> dict[str, set[int]]:
    """Numbers of the packet programs in the hosts of a lab, and of their maps."""
    programs = set()
    for host in HOSTS:
        for device in pair.devices(host):
            for hook in ("ingress", "egress"):
                command = pair.lab.command(host, ["tc", "-j", "filter", "show", "dev", device, hook])
                told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
                programs |= {one["options"]["prog"]["id"] for one in json.loads(told or "[]") if "options" in one}
    maps = {number for program in programs for number in _bpftool("prog", "show", "id", str(program))["map_ids"]}
    return {"prog": programs, "map": maps}


def _still_there(loaded: dict[str, set[int]]) -> list[str]:
    return [f"{kind} {number}" for kind, numbers in loaded.items()
            for number in numbers & {one["id"] for one in _bpftool(kind, "show")}]


def _memory_files(namespaces: set[int]) -> set[int]:
    """Inodes of the memory of every QEMU that runs in one of these network namespaces."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino in namespaces and "qemu" in os.readlink(process / "exe"):
                found |= {fd.stat().st_ino for fd in (process / "fd").iterdir() if "/shm/" in os.readlink(fd)}
        except OSError:
            continue
    return found
