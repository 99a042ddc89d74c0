# SPDX-License-Identifier: GPL-2.0-or-later
"""A lab's shared volume: both hosts reach the same one over cables of their own, who has no secret does not."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import Unavailable, UsageError
from appliance.lab import blueprint, disks, topology, volume
from appliance.lab.blueprint import Options
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS
from appliance.lab.volume import Volume
from tests.lab.conftest import inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20


@pytest.fixture
def sharing(names: Callable[[], str], image: Path) -> Callable[[Volume], Lab]:
    def make(shared: Volume) -> Lab:
        lab = Lab.create(Options(name=names(), kernel=str(image), qemu=sys.executable, volume=shared))
        lab.start_volume()
        return lab

    return make


def entry(lab: Lab, host: str) -> dict[str, str]:
    """The volume as the configuration of `host` has it."""
    text = (blueprint.host_directory(lab.name, host) / "config" / "holdfast.toml").read_text()
    [found] = tomllib.loads(text)["vm"]["web1"]["volume"]
    return {key: str(value) for key, value in found.items()}


def options(lab: Lab, host: str, secret: str | None = None) -> list[str]:
    """QEMU's options for that volume."""
    told = entry(lab, host)
    if not told["at"].startswith("iscsi:"):
        return [told["at"]]
    _, _, portal, target, lun = told["at"].split("/")
    password = secret or Path(told["secret"]).read_text()
    return ["--image-opts", f"driver=iscsi,transport=tcp,portal={portal},target={target},lun={lun},"
                            f"user={told['user']},password={password}"]  # fmt: skip


@pytest.mark.parametrize("by", ["iscsi", "nbd"])
def test_both_hosts_reach_the_same_volume(sharing: Callable[[Volume], Lab], by: str) -> None:
    lab = sharing(Volume(by, size=8 * MIB))
    kept = volume.image(lab.name, Volume(by))
    with kept.open("r+b") as file:
        file.write(b"the same for both")
    for host in HOSTS:
        found = json.loads(inside(lab, host, "qemu-img", "info", "--output=json", *options(lab, host)))
        assert found["virtual-size"] == 8 * MIB
        words = ["if=" + options(lab, host)[-1]]
        if by == "iscsi":
            words = ["--image-opts", words[0]]
        copy = lab.directory / f"{host}.copy"
        inside(lab, host, "qemu-img", "dd", *words, f"of={copy}", "bs=512", "count=1")
        assert copy.read_bytes().startswith(b"the same for both")
    assert lab.status()["volume"]["image"] == str(kept)
    assert lab.fault("san-down", "alpha").kind == "san-down"
    assert [lab.status()["hosts"][host]["cables_cut"] for host in HOSTS] == [["san0"], []]
    with pytest.raises(subprocess.SubprocessError):
        subprocess.run(["ip", "netns", "exec", topology.netns(lab.name, "alpha"), "ping", "-c1", "-W1",
                        topology.SAN_IP], check=True, capture_output=True, timeout=10)  # fmt: skip
    lab.down()
    assert not kept.exists() and not disks.directory(lab.name).exists()


def test_without_the_secret_nobody_gets_in(sharing: Callable[[Volume], Lab]) -> None:
    lab = sharing(Volume("iscsi", size=MIB))
    assert Path(entry(lab, "alpha")["secret"]).stat().st_mode & 0o077 == 0
    inside(lab, "alpha", "qemu-img", "info", *options(lab, "alpha"))
    with pytest.raises(subprocess.CalledProcessError):
        inside(lab, "alpha", "qemu-img", "info", *options(lab, "alpha", "f" * 16))


def test_a_device_of_this_machine_is_told_as_it_is(names: Callable[[], str], image: Path) -> None:
    device = next((f"/dev/{name}" for name in os.listdir("/sys/block")), None)
    if device is None:
        pytest.skip("no block device")
    lab = Lab.create(Options(name=names(), kernel=str(image), qemu=sys.executable, volume=Volume("device", 0, device)))
    assert lab.start_volume() is None and not topology.exists(lab.name, topology.SAN)
    assert entry(lab, "beta")["at"] == device
    with pytest.raises(Unavailable, match="share no volume over a cable"):
        lab.fault("san-down", "alpha")


def test_what_can_be_asked_for() -> None:
    assert volume.parse("1GiB") == volume.parse("1G:iscsi") == Volume("iscsi", 1 << 30)
    assert volume.parse("64:nbd") == Volume("nbd", 64 * MIB)
    assert volume.parse("guest") == Volume("iscsi", guest=True)
    assert volume.parse("/dev/loop0") == Volume("device", device="/dev/loop0")
    with pytest.raises(ValueError):
        volume.parse("1GiB:fibre")
    with pytest.raises(UsageError):
        volume.check(Volume("nbd", 100))
    with pytest.raises(UsageError):
        volume.check(Volume("device", device="/dev/null"))
    with pytest.raises(Unavailable):
        volume.check(Volume("device", device="/dev/nothing"))
    with pytest.raises(UsageError, match="guest's disk on the volume"):
        blueprint.check(Options(volume=Volume("nbd", guest=True)))
