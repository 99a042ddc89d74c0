# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a volume may be, how QEMU is told, and by what two hosts know that it is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmlink.errors import VmError
from vmlink.volume.spec import VolumeSpec, arguments

ISCSI = "iscsi://10.0.0.1/iqn.2026-01.example:store/3"


def test_how_qemu_reaches_it() -> None:
    node = VolumeSpec("vol", ISCSI, "me", Path("/key")).node("n")
    assert (node["portal"], node["target"], node["lun"]) == ("10.0.0.1:3260", "iqn.2026-01.example:store", 3)
    assert (node["user"], node["password-secret"]) == ("me", "vol-secret")
    assert VolumeSpec("vol", "iscsi://[fd00::1]:3261/iqn.2026-01.example:a/0").node("n")["portal"] == "[fd00::1]:3261"
    node = VolumeSpec("vol", "nbd://storage:1234/some%20name").node("n")
    assert (node["export"], node["server"]) == ("some name", {"type": "inet", "host": "storage", "port": "1234"})
    assert VolumeSpec("vol", "/dev/sdb").node("n")["filename"] == "/dev/sdb"


def test_a_password_is_on_no_command_line(tmp_path: Path) -> None:
    volume = VolumeSpec("vol", ISCSI, "me", tmp_path / "key")
    with pytest.raises(VmError, match="cannot be read"):
        volume.objects()
    (tmp_path / "key").write_text("open sesame\n")
    assert volume.objects() == [{"qom-type": "secret", "id": "vol-secret", "data": "open sesame"}]
    assert not any("iscsi" in word or "sesame" in word for word in arguments(volume, "server"))


@pytest.mark.parametrize("at", ["", "vol", "http://h/x", "iscsi://h/iqn.x:y", "iscsi://h/other/1", "iscsi:///iqn.x:y/1",
                                "iscsi://me:pw@h/iqn.x:y/1", "nbd://h", "nbd://h:port/x", "nbd://h/x?tls=no"])
def test_what_is_no_place(at: str) -> None:
    with pytest.raises(VmError) as error:
        VolumeSpec("vol", at).check()
    assert "iscsi://PORTAL" in error.value.hint


@pytest.mark.parametrize("spec", [
    VolumeSpec("Vol", ISCSI), VolumeSpec("vol", ISCSI, user="me"), VolumeSpec("vol", ISCSI, secret=Path("/key")),
    VolumeSpec("vol", "nbd://h/x", "me", Path("/key")),
])  # fmt: skip
def test_what_does_not_fit_together(spec: VolumeSpec) -> None:
    with pytest.raises(VmError):
        spec.check()


def test_who_sees_the_same(tmp_path: Path) -> None:
    size = 1 << 20
    own = VolumeSpec("vol", ISCSI).identity(size)
    assert own == VolumeSpec("vol", ISCSI.replace("10.0.0.1", "10.0.1.1:3261")).identity(size), "another path to it"
    assert own != VolumeSpec("vol", ISCSI.replace("/3", "/4")).identity(size)
    assert own != VolumeSpec("vol", ISCSI).identity(2 * size)
    assert VolumeSpec("vol", "nbd://a/x").identity(size) != VolumeSpec("vol", "nbd://b/x").identity(size)
    (tmp_path / "file").touch()
    with pytest.raises(VmError, match="no block device"):
        VolumeSpec("vol", str(tmp_path / "file")).identity(size)
    with pytest.raises(VmError, match="No such file"):
        VolumeSpec("vol", str(tmp_path / "none")).identity(size)


def test_a_device_that_has_no_name_is_nobodys_to_share() -> None:
    """Its path and its size say nothing: the other host may have another device there."""
    free = [place for place in Path("/sys/block").glob("loop*") if not (place / "loop").exists()]
    if not free or not (device := Path("/dev") / free[0].name).is_block_device():
        pytest.skip("a loop device that is free")
    with pytest.raises(VmError, match="neither a WWID nor a serial number"):
        VolumeSpec("vol", str(device)).identity(1 << 20)
