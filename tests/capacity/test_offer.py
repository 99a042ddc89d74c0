# SPDX-License-Identifier: GPL-2.0-or-later
"""What this very machine offers, against what it says of itself elsewhere."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from pathlib import Path

import msgspec
import psutil
import pytest

from appliance import config as cfg
from appliance import offer
from appliance.capacity import Offer
from appliance.offer import Stock

MIB = 1 << 20


def config(tmp_path: Path, **host: object) -> cfg.Config:
    vm = cfg.Vm(home="alpha", memory=64 * MIB, mac="52:54:00:00:00:01", bridge="br0", kernel=Path("/k"), accel="tcg")
    broken = msgspec.structs.replace(vm, qemu="no-such-qemu")
    return cfg.Config(host=cfg.Host(name="alpha", state_dir=tmp_path, **host), peer=cfg.Peer(name="beta"), link=(),
                      vm={"web1": vm, "web2": broken})


def measured(tmp_path: Path, qemus: list[tuple[int, int]], **host: object) -> Offer:
    return asyncio.run(Stock(config(tmp_path, **host), lambda: qemus, lambda: None).measure())


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86 is not installed")
def test_this_machine(tmp_path: Path) -> None:
    found = measured(tmp_path, [])
    assert (found.cores, found.machine) == (os.cpu_count(), platform.machine())
    assert 0 < found.memory <= psutil.virtual_memory().total
    assert found.emulators["web1"].version[0].isdigit() and found.emulators["web1"].accel == "tcg"
    assert "no-such-qemu" in found.emulators["web2"].trouble
    assert found.flags and found.disk > 0
    assert msgspec.json.decode(msgspec.json.encode(found), type=Offer) == found


def test_the_operators_limit_counts(tmp_path: Path) -> None:
    assert measured(tmp_path, [], memory_limit=64 * MIB).memory == 64 * MIB


def test_what_its_vms_have_already_is_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica in place must not make its own host look too small for it."""
    monkeypatch.setattr(offer, "_meminfo", lambda field: 256 * MIB)
    before, own = measured(tmp_path, []).memory, psutil.Process().memory_info().rss
    assert before == 256 * MIB
    assert measured(tmp_path, [(os.getpid(), 0)]).memory - before in range(own - 48 * MIB, own + 48 * MIB)


def test_guest_memory_lies_in_a_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offer, "_free", lambda directory: 32 * MIB)
    assert measured(tmp_path, []).ram == 32 * MIB
    assert measured(tmp_path, [(os.getpid(), 64 * MIB)]).ram == 96 * MIB, "what its VMs have is theirs"


def test_a_cgroup_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "cgroup" / Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{128 * MIB}\n")
    (group / "memory.current").write_text(f"{96 * MIB}\n")
    monkeypatch.setattr(offer, "_CGROUP", tmp_path / "cgroup")
    assert measured(tmp_path, []).memory == 32 * MIB
    (group / "memory.max").write_text("max\n")
    assert measured(tmp_path, []).memory > 32 * MIB
