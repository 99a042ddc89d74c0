# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a protected VM grow, come and go; whatever happens then, the other host has the same ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import control
from appliance.errors import HoldfastError, Unavailable
from appliance.lab import blueprint, disks
from appliance.lab.blueprint import VM, Options
from appliance.lab.disks import Disk
from appliance.lab.topology import HOSTS
from tests.pair.pair import Pair, until
from tests.pair.test_disks import MIB, Written, applied, ask, copies

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


class Changes:
    """What an operator does about the disks of a lab's VM. `data` is disk 1, beside the one that the lab has."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._plain = {host: self._file(host).read_text() for host in HOSTS}

    def _file(self, host: str) -> Path:
        return blueprint.host_directory(self._pair.lab.name, host) / "config" / "holdfast.toml"

    def image(self, host: str) -> Path:
        return disks.home(self._pair.lab.name, host) / "data.img"

    def tell(self, at: str, verb: str, **words: Any) -> dict[str, Any]:
        path = blueprint.control_path(self._pair.lab.name, at)
        return control.call(path, f"disk-{verb}", timeout=90, vm=VM, **words)

    def section(self, *hosts: str, form: str = "qcow2", size: str = "") -> None:
        """It stands in the configuration of these hosts, and not of the others."""
        for host in HOSTS:
            table = f'\n[[vm.{VM}.disk]]\nname = "data"\npath = "{self.image(host)}"\nformat = "{form}"\n'
            table += f'size = "{size}"\n' if size else ""
            self._file(host).write_text(self._plain[host] + (table if host in hosts else ""))

    def make(self, size: int, form: str = "qcow2", hosts: tuple[str, ...] = HOSTS) -> None:
        for host in hosts:
            self.image(host).unlink(missing_ok=True)
            subprocess.run(["qemu-img", "create", "-q", "-f", form, self.image(host), str(size)], check=True,
                           timeout=20)

    def add(self, at: str, size: int = 16 * MIB) -> None:
        self.make(size)
        self.section(*HOSTS)
        assert self.tell(at, "add", disk="data")["behind"] is None
        self.guest_has(1, size)

    def remove(self, at: str) -> None:
        self.section()
        assert self.tell(at, "remove", disk="data")["behind"] is None
        until("the guest has lost it", lambda: "error" in ask(self._pair, f"check 1 0 {MIB} 0"))

    def guest_has(self, disk: int, size: int) -> None:
        """The guest can use it up to its end, which has not been written."""
        until(f"the guest has {size} bytes", lambda: ask(self._pair, f"check {disk} {size - MIB} {MIB} 0") == "ok")
        assert "ok" not in ask(self._pair, f"check {disk} {size} {MIB} 0")

    def sizes(self, host: str) -> list[int]:
        return [disk["size_bytes"] for disk in self._pair.vm(host)["disks"]["disks"]]


@pytest.fixture(scope="module")
def pair(fresh_name: Callable[[], str]) -> Iterator[Pair]:
    pair = Pair.up(Options(name=fresh_name(), disks=(Disk("raw", size=64 * MIB),)))
    yield pair
    pair.down()


@pytest.fixture(scope="module")
def changes(pair: Pair) -> Changes:
    return Changes(pair)


def test_a_disk_comes_grows_and_goes(pair: Pair, changes: Changes) -> None:
    """Each time the other host goes on with the same disks and what is on them: by a crash, or by a switchover."""
    written = Written(pair)
    primary, backup = pair.protected()
    written.write(0, *range(8))
    changes.add(backup)  # whichever host it is said to
    assert pair.protected() == (primary, backup)
    written.write(1, 0, 100)
    pair.lab.fault("crash", primary)
    pair.takes_over(backup)
    written.check()
    pair.heal(primary)
    primary, backup = pair.protected()

    for disk, name, size in ((1, "data", 40 * MIB), (0, "disk0", 96 * MIB)):
        told = changes.tell(primary, "resize", disk=name, size=size)
        assert told["behind"] is None and told["paused_ms"] > 0
        changes.guest_has(disk, size)
        assert pair.protected() == (primary, backup)
        copy = copies(pair, primary)[-1]
        assert copy["by"] == "lists" and copy["moved"] < 4 * MIB
    written.write(1, 500)
    written.write(0, 1300)
    assert changes.sizes(primary) == changes.sizes(backup) == [96 * MIB, 40 * MIB]
    pair.lab.fault("crash", primary)
    pair.takes_over(backup)
    written.check()
    changes.guest_has(1, 40 * MIB)
    pair.heal(primary)
    primary, backup = pair.protected()

    written.forget(1)
    changes.remove(primary)
    assert pair.protected() == (primary, backup)
    control.call(blueprint.control_path(pair.lab.name, primary), "switchover", timeout=60, vm=VM)
    assert pair.protected() == (backup, primary)
    written.check()
    applied(pair, primary)
    assert changes.sizes(primary) == changes.sizes(backup) == [96 * MIB]
    pair.sound()


def test_what_cannot_be_is_refused_and_changes_nothing(pair: Pair, changes: Changes) -> None:
    primary, backup = pair.protected()
    before = changes.sizes(primary)[0]
    for words, cause in (({"size": before}, "does not become smaller"), ({"size": 1000}, "no size of a disk"),
                         ({"size": 1 << 62}, "cannot|resizing"), ({"disk": "data", "size": before}, "has no disk")):
        with pytest.raises(HoldfastError, match=cause):
            changes.tell(primary, "resize", **{"disk": "disk0", **words})
    with pytest.raises(HoldfastError, match="the configuration of .* still has disk disk0|last disk"):
        changes.tell(primary, "remove", disk="disk0")
    changes.make(16 * MIB)
    for hosts, form, size, cause in (
            ((), "qcow2", "", f"configuration of {primary} has no disk data"),
            ((primary,), "qcow2", "", f"configuration of {backup} has no disk data"),
            (HOSTS, "raw", "", "it is a qcow2 image"), (HOSTS, "qcow2", "8MiB", "and not 8388608")):
        changes.section(*hosts, form=form, size=size)
        with pytest.raises(Unavailable, match=cause):
            changes.tell(backup, "add", disk="data")
    changes.make(8 * MIB, hosts=(backup,))
    changes.section(*HOSTS)
    with pytest.raises(Unavailable, match=f"has 8388608 bytes on {backup}"):
        changes.tell(primary, "add", disk="data")
    changes.section()
    assert pair.protected() == (primary, backup)
    assert len(changes.sizes(primary)) == 1
    pair.sound()


def test_a_host_that_was_away_follows(pair: Pair, changes: Changes) -> None:
    written = Written(pair)
    primary, backup = pair.protected()
    written.write(0, 20)
    pair.lab.fault("service-kill", backup)
    until("the VM is alone", lambda: pair.vm(primary)["phase"] == "solo")
    size = changes.sizes(primary)[0] + 8 * MIB
    changes.make(16 * MIB)
    changes.section(*HOSTS)
    assert "not reachable" in changes.tell(primary, "resize", disk="disk0", size=size)["behind"]
    assert "not reachable" in changes.tell(primary, "add", disk="data")["behind"]
    changes.guest_has(1, 16 * MIB)
    written.write(1, 7)
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    assert changes.sizes(backup) == [size, 16 * MIB]
    control.call(blueprint.control_path(pair.lab.name, primary), "switchover", timeout=60, vm=VM)
    primary, backup = pair.protected()
    written.check()
    changes.remove(primary)
    assert pair.protected() == (primary, backup)
    pair.sound()


@pytest.mark.parametrize("point", ["disk.resize.noted", "disk.resize.done", "disk.plug.noted", "disk.plug.done",
                                   "disk.unplug.done", "disk.follow.noted", "disk.follow.done"])
def test_a_host_that_dies_in_a_change(pair: Pair, changes: Changes, point: str) -> None:
    """Alone meanwhile, the VM starts afresh when its host dies; the data is there, and the hosts agree about it."""
    written = Written(pair)
    primary, backup = pair.protected()
    written.write(0, 30)
    size = changes.sizes(primary)[0] + 8 * MIB
    if "unplug" in point:
        changes.add(primary)
        pair.protected()
    dies = backup if "follow" in point else primary
    pair.arm(dies, f"{point}:kill")
    if "resize" in point or "follow" in point:
        told = _told(lambda: changes.tell(primary, "resize", disk="disk0", size=size))
    elif ".plug" in point:
        changes.make(16 * MIB)
        changes.section(*HOSTS)
        told = _told(lambda: changes.tell(primary, "add", disk="data"))
    else:
        changes.section()
        told = _told(lambda: changes.tell(primary, "remove", disk="data"))
    assert (told == "done") is (dies is backup)  # which answers first
    pair.dead(dies)
    pair.heal(dies)
    primary, backup = pair.protected(60)
    if dies is not backup:
        pair.new_client()
    written.check()
    until("both have the same", lambda: changes.sizes(primary) == changes.sizes(backup))
    assert len(changes.sizes(primary)) == (2 if ".plug" in point else 1)
    written.write(0, 31)
    pair.lab.fault("crash", primary)
    pair.takes_over(backup)
    written.check()
    pair.heal(primary)
    primary, backup = pair.protected()
    if ".plug" in point:
        changes.remove(primary)
        pair.protected()
    pair.sound()


def _told(work: Callable[[], dict[str, Any]]) -> str:
    """How a change ended in whose middle a host died."""
    try:
        return str(work()["behind"] or "done")
    except HoldfastError as error:
        return error.message
