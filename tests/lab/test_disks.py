# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a lab: what may be asked for, a copy for each host, and nothing left."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import config
from appliance.errors import HoldfastError, Unavailable, UsageError
from appliance.lab import blueprint, disks, fallible
from appliance.lab.blueprint import Options
from appliance.lab.disks import Disk, parse
from appliance.lab.lab import Lab
from tests.lab.naming import traces

MIB = 1 << 20
Names = Callable[[], str]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("8GiB", Disk("raw", size=8 << 30)),
        ("8G", Disk("raw", size=8 << 30)),
        ("64", Disk("raw", size=64 * MIB)),
        ("1.5GiB:qcow2", Disk("qcow2", size=3 << 29)),
        ("/a/b.img", Disk("raw", source="/a/b.img")),
        ("/a/b:c:qcow2", Disk("qcow2", source="/a/b:c")),
        ("/a/b:c", Disk("raw", source="/a/b:c")),
    ],
)
def test_what_a_disk_is_written_as(text: str, found: Disk) -> None:
    assert parse(text) == found


def test_a_relative_image_is_of_the_directory_one_is_in() -> None:
    assert parse("some/image.img").source == f"{os.getcwd()}/some/image.img"


@pytest.mark.parametrize("text", ["", ":raw", "8XB"])
def test_what_is_no_disk(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@pytest.mark.parametrize(
    "chosen",
    [(Disk("raw", source="/nonexistent"),), (Disk("raw", size=512),), (Disk("raw", size=MIB + 512),),
     (Disk("raw", size=MIB),) * 9],
)  # fmt: skip
def test_what_no_lab_can_have(chosen: tuple[Disk, ...], names: Names, image: Path) -> None:
    options = Options(name=names(), kernel=str(image), qemu=sys.executable, disks=chosen)
    with pytest.raises((UsageError, Unavailable)):
        blueprint.check(options)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_each_host_has_an_image_of_its_own(names: Names, image: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.img"
    with source.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(32 * MIB)
        file.write(b"in the middle")
    wanted = (Disk("raw", source=str(source)), Disk("qcow2", size=1 << 40))
    lab = Lab.create(Options(name=names(), kernel=str(image), qemu=sys.executable, disks=wanted))
    images = {}
    for host, summary in lab.status()["hosts"].items():
        assert [(disk["name"], disk["format"]) for disk in summary["disks"]] == [("disk0", "raw"), ("disk1", "qcow2")]
        images[host] = [Path(disk["path"]) for disk in summary["disks"]]
        raw, qcow2 = images[host]
        assert raw.read_bytes() == source.read_bytes() and raw.stat().st_blocks * 512 < MIB
        assert qcow2.read_bytes()[:4] == b"QFI\xfb" and qcow2.stat().st_size < MIB
        told = config.load(blueprint.host_directory(lab.name, host) / "config").vm["web1"].disk
        assert [(disk.name, disk.path, disk.format) for disk in told] == [
            ("disk0", raw, "raw"), ("disk1", qcow2, "qcow2")]  # fmt: skip
    images["alpha"][0].write_bytes(b"changed")
    assert images["beta"][0].read_bytes() == source.read_bytes()
    assert f"disks {disks.directory(lab.name)}" in lab.down()
    assert traces(lab.name) == []


def wanting(names: Names, image: Path, *wanted: Disk) -> Lab:
    return Lab.create(Options(name=names(), kernel=str(image), qemu=sys.executable, disks=wanted, disk_faults=True))


needs_fuse = pytest.mark.skipif(os.geteuid() != 0 or not os.access("/dev/fuse", os.W_OK), reason="needs root and FUSE")


@needs_fuse
def test_a_disk_fails_when_it_is_told_to_and_is_mended(names: Names, image: Path) -> None:
    lab = wanting(names, image, Disk("raw", size=8 * MIB))
    disk = os.open(disks.path(lab.name, "beta", 0, lab.options.disks[0]), os.O_RDWR | os.O_SYNC)
    try:
        assert os.pwrite(disk, b"before", 0) == 6
        lab.fault("disk-fail", "beta")
        for attempt in (lambda: os.pwrite(disk, b"no", 0), lambda: os.pread(disk, 4096, MIB)):
            with pytest.raises(OSError) as failed:
                attempt()
            assert failed.value.errno == errno.EIO
        assert lab.status()["hosts"]["beta"]["disk_faults"] == ["failing"]
        assert fallible.mend(disks.home(lab.name, "beta")) == ["failing"]
        assert os.pwrite(disk, b" after", 6) == 6
        assert os.pread(disk, 12, 0) == b"before after"
        assert disks.image(lab.name, "beta", 0, lab.options.disks[0]).read_bytes()[:12] == b"before after"
    finally:
        os.close(disk)
    lab.down()
    assert traces(lab.name) == []


@needs_fuse
def test_a_full_disk_has_no_room_for_what_is_new(names: Names, image: Path) -> None:
    lab = wanting(names, image, Disk("raw", size=8 * MIB))
    with open(disks.path(lab.name, "alpha", 0, lab.options.disks[0]), "r+b", buffering=0) as disk:
        disk.write(bytes(4096))
        lab.fault("disk-full", "alpha")
        disk.seek(0)
        disk.write(b"there is room for what is there")
        with pytest.raises(OSError) as failed:
            for _ in range(64):
                disk.seek(MIB, os.SEEK_CUR)
                disk.write(bytes(4096))
        assert failed.value.errno in (errno.ENOSPC, errno.EIO)
        assert lab.status()["hosts"]["alpha"]["disk_faults"] == ["full"]
        assert fallible.mend(disks.home(lab.name, "alpha")) == ["full"] and not fallible.faults(
            disks.home(lab.name, "alpha"))  # fmt: skip
        disk.seek(4 * MIB)
        disk.write(bytes(4096))
    lab.down()
    assert traces(lab.name) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_an_ordinary_disk_cannot_be_told_to_fail(names: Names, image: Path) -> None:
    lab = Lab.create(Options(name=names(), kernel=str(image), qemu=sys.executable))
    with pytest.raises(Unavailable, match="--disk-faults"):
        lab.fault("disk-fail", "alpha")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_disk_that_cannot_be_made_leaves_nothing(names: Names, image: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(disks, "ROOT", image)  # a file, where a directory is needed
    name = names()
    with pytest.raises(HoldfastError, match="HOLDFAST_LAB_DISKS"):
        Lab.create(Options(name=name, kernel=str(image), qemu=sys.executable, disks=(Disk("raw", size=MIB),)))
    assert traces(name) == []


def test_the_disk_guest_is_of_one_vm(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_IMAGE_DIR", str(image.parent / "image"))
    built = image.parent / "image-disk"
    options = Options(guest="disk", qemu=sys.executable)
    with pytest.raises(Unavailable, match="make image-disk"):
        options.image()
    built.mkdir()
    for file in ("vmlinuz", "initrd.img", "disk.img"):
        (built / file).write_bytes(b"x" * 4096)
    blueprint.check(options)
    assert options.all_disks() == (Disk("raw", source=str(built / "disk.img")),)
    with pytest.raises(UsageError, match="two VMs"):
        blueprint.check(Options(guest="disk", vms=2, qemu=sys.executable))
    with pytest.raises(UsageError, match="no guest 'tape'"):
        blueprint.check(Options(guest="tape", qemu=sys.executable))
