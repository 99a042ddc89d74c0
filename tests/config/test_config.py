# SPDX-License-Identifier: GPL-2.0-or-later
"""A configuration is read as written, or refused with file, line, key and remedy."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import config, toml_tree
from appliance.cli import main
from appliance.errors import ConfigError

Spoil = Callable[[str, str], Path]


def test_values_arrive_in_seconds_and_bytes(directory: Path) -> None:
    found = config.load(directory)
    vm = found.vm["web1"]
    assert (found.host.name, found.peer.name) == ("alpha", "beta")
    assert [(link.name, link.port) for link in found.link] == [("link0", 7780), ("link1", 7781)]
    assert (vm.memory, vm.limits.held, vm.limits.replay_log) == (128 << 20, 1 << 30, 4 << 20)
    assert (vm.epoch.length, vm.epoch.min, vm.epoch.mode) == (0.01, 0.005, "adaptive")
    assert vm.ip == ("10.77.0.10", "fd77::10")
    assert (vm.kernel, vm.initrd) == (directory / "vmlinuz", None)
    assert found.host.state_dir == directory / "state"
    assert found.control_path == Path("/run/holdfast/control.sock")
    assert not found.arbiter.accept_split_brain_risk


# What is replaced, by what; then the line, the key, and words of the cause and of the remedy.
FAULTS = {
    "unknown key": ('length = "10ms"', 'lenth = "10ms"', 17, "vm.web1.epoch.lenth", "unknown key", "length"),
    "unknown section": ("[peer]", "[peeer]", 5, "peeer", "unknown key", "did you mean peer"),
    "no unit": ('"10ms"', '"10"', 17, "vm.web1.epoch.length", "no unit", "ms"),
    "bare number": ('"10ms"', "10", 17, "vm.web1.epoch.length", "no unit", '"25ms"'),
    "wrong unit": ('"10ms"', '"10mins"', 17, "vm.web1.epoch.length", "unknown unit 'mins'", "min"),
    "decimal size": ('"128MiB"', '"128MB"', 3, "vm.web1.memory", "unknown unit 'MB'", "MiB"),
    "negative": ('"10ms"', '"-10ms"', 17, "vm.web1.epoch.length", "not a duration", "number and a unit"),
    "memory too small": ('"128MiB"', '"4MiB"', 3, "vm.web1.memory", "4MiB", "16MiB"),
    "wrong type": ('"br0"', "3", 9, "vm.web1.bridge", "expected `str`, got `int`", "correct"),
    "wrong type in link": ("port = 7781", 'port = "x"', 19, "link[1].port", "expected `int`", "correct"),
    "missing key": ('home = "alpha"\n', "", 1, "vm.web1", "home is missing", "add"),
    "no table": ('[vm.web1.limits]\nheld = "1GiB"', "limits = 3", 19, "vm.web1.epoch.limits", "unknown key", "length"),
    "table as value": ('[vm.web1.epoch]\nlength = "10ms"', "epoch = 3", 16, "vm.web1.epoch", "a table", "[vm.web1"),
    "group MAC": ('"52:54', '"53:54', 4, "vm.web1.mac", "group address", "even"),
    "bad MAC": ('"52:54', '"52-54', 4, "vm.web1.mac", "not a MAC", "52:54:00"),
    "bad IP": ('"fd77::10"', '"fd77::/64"', 5, "vm.web1.ip", "not an IP", "without prefix"),
    "loopback": ('"10.77.0.10"', '"127.0.0.1"', 5, "vm.web1.ip", "cannot be", "address"),
    "IP twice": ('"fd77::10"', '"10.77.0.10"', 5, "vm.web1.ip", "twice", "once"),
    "missing file": ('"vmlinuz"', '"vmlinux"', 9 + 1, "vm.web1.kernel", "there is no file", "image"),
    "no such mode": ('length = "10ms"', 'mode = "fast"', 17, "vm.web1.epoch.mode", "unknown", "adaptive, fixed"),
    "min above max": ('length = "10ms"', 'min = "60ms"', 17, "vm.web1.epoch.min", "greater than max", "swap"),
    "share": ('length = "10ms"', "pause_share = 2.0", 17, "vm.web1.epoch.pause_share", "no share", "0.01"),
    "strange home": ('home = "alpha"', 'home = "gamma"', 2, "vm.web1.home", "neither", "alpha or beta"),
    "own peer": ('name = "beta"', 'name = "alpha"', 6, "peer.name", "itself", "other host"),
    "same interface": ('interface = "link1"', 'interface = "link0"', 16, "link[1].interface", "another", "own"),
    "peer is us": ('peer = "169.254.78.2"', 'peer = "169.254.78.1"', 18, "link[1].peer", "our own", "other"),
    "IP versions": ('peer = "169.254.78.2"', 'peer = "fd77::2"', 18, "link[1].peer", "version", "same"),
    "port": ("port = 7781", "port = 70000", 19, "link[1].port", "no port", "65535"),
    "timing": ("[[link]]", '[timing]\ntimeout = "30ms"\n[[link]]', 9, "timing.timeout", "twice", "heartbeat"),
    "syntax": ('length = "10ms"', "length = 10ms", 17, "", "statement", "quotes"),
    "twice in a file": ('length = "10ms"', 'length = "10ms"\nlength = "11ms"', 18, "", "overwrite", "toml.io"),
    "twice in two files": ("[vm.web1.epoch]", '[host]\nname = "x"\n[vm.web1.epoch]', 17, "host.name", "already", "one"),
    "disk without path": ("[vm.web1.epoch]", '[[vm.web1.disk]]\nname = "data"\n[vm.web1.epoch]', 16, "vm.web1.disk[0]",
                          "path is missing", "add"),
    "disk as value": ('home = "alpha"', 'home = "alpha"\ndisk = 3', 3, "vm.web1.disk", "list of tables", "[[vm.web1"),
    "unknown key of a disk": ("[vm.web1.epoch]", '[[vm.web1.disk]]\npaht = "data"\n[vm.web1.epoch]', 17,
                              "vm.web1.disk[0].paht", "unknown key", "did you mean path"),
    "tiny limit": ('"1GiB"', '"10KiB"', 20, "vm.web1.limits.held", "256KiB", "frames"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_file_line_key_and_remedy(spoil: Spoil, case: str) -> None:
    old, new, line, key, cause, remedy = FAULTS[case]
    directory = spoil(old, new)
    with pytest.raises(ConfigError) as caught:
        config.load(directory)
    error = caught.value
    where = next(file for file in directory.glob("*.toml") if new in file.read_text() or not new)
    assert (error.key, error.line) == (key, line)
    assert cause in error.reason and remedy in error.hint
    if new:
        assert error.file == str(where)
    assert error.message.startswith(f"{error.file}:{line}: ")


def test_a_vm_stands_in_one_file_only(directory: Path) -> None:
    (directory / "30-more.toml").write_text('[vm.web1]\nhome = "beta"\n')
    with pytest.raises(ConfigError, match=r"30-more.toml:1: vm.web1: already set in .*20-vm.toml:1"):
        config.load(directory)


def test_two_vms_cannot_share_an_address(directory: Path) -> None:
    second = (directory / "20-vm.toml").read_text().replace("web1", "web2").replace("00:10", "00:11")
    (directory / "30-more.toml").write_text(second)
    with pytest.raises(ConfigError, match="10.77.0.10 is an address of VM web2 too"):
        config.load(directory)


def test_links_of_several_files_are_counted_on(directory: Path) -> None:
    (directory / "15-link.toml").write_text('[[link]]\nname = "link2"\ninterface = "l2"\naddress = "x"\npeer = "y"\n')
    with pytest.raises(ConfigError, match=r"15-link.toml:4: link\[2\].address"):
        config.load(directory)


@pytest.mark.parametrize("section", ["host", "peer", "link", "vm"])
def test_a_missing_section_is_named(directory: Path, section: str) -> None:
    for file in directory.glob("*.toml"):
        text = re.sub(rf"(?m)^\[+{section}\b[^\n]*\n(?:(?!\[(?:host|peer|\[)).*\n)*", "", file.read_text())
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config.load(directory)
    assert f"no [{section}] in any file" in caught.value.message and f"[{section}" in caught.value.hint


def test_what_is_no_configuration_at_all(tmp_path: Path) -> None:
    def refused() -> str:
        with pytest.raises(ConfigError) as caught:
            config.load(tmp_path)
        assert caught.value.hint
        return caught.value.message

    file = tmp_path / "holdfast.toml"
    assert "no *.toml" in refused()
    file.write_bytes(b"a = '\xff'")
    assert "holdfast.toml:1: not UTF-8" in refused()
    file.write_bytes(b"a = " + b"[" * 100_000)
    assert "deeply" in refused() or "holdfast.toml" in refused()
    file.write_bytes(b"#" * (toml_tree.MAX_FILE_BYTES + 1))
    assert "larger" in refused()
    file.unlink()
    file.mkdir()
    assert "directory" in refused()
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "nothing")


def test_line_numbers_survive_whatever_toml_allows() -> None:
    text = (
        '# [c]\n"a b".c = 1\n[x . "y.z"]\nq = """\n[no]\nk = 1\n"""\nr = [ # [\n [1, 2],\n "]",\n]\n'
        "s = { t = [\n1] }\n[[u]]\nv = '#'\n[u.w]\nk = 1\n[[u]]\nv = 2\n"
    )
    assert dict(toml_tree.lines(text)) == {
        ("a b", "c"): 2, ("x", "y.z"): 3, ("x", "y.z", "q"): 4, ("x", "y.z", "r"): 8, ("x", "y.z", "s"): 12,
        ("u",): 18, ("u", 0): 14, ("u", 0, "v"): 15, ("u", 0, "w"): 16, ("u", 0, "w", "k"): 17,
        ("u", 1): 18, ("u", 1, "v"): 19,
    }  # fmt: skip


def test_check_config_tells_people_and_programs(
    directory: Path, spoil: Spoil, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-config", str(directory)]) == 0
    assert "correct: host alpha, peer beta, 2 links, VMs web1" in capsys.readouterr().out
    spoil('"br0"', "3")
    assert main(["check-config", str(directory)]) == 78
    told = capsys.readouterr().err
    assert told.startswith("holdfast: ") and "20-vm.toml:9: vm.web1.bridge" in told
    assert main(["check-config", "-j", str(directory)]) == 78
    answer = capsys.readouterr().out
    assert '"code": "config"' in answer and '"line": 9' in answer


# --- disks ---

DISK = """
[[vm.web1.disk]]
name = "system"
path = "system.img"

[[vm.web1.disk]]
name = "data"
path = "data.img"
format = "qcow2"
size = "8GiB"
"""


def with_disks(directory: Path, text: str = DISK) -> Path:
    (directory / "20-vm.toml").write_text((directory / "20-vm.toml").read_text() + text)
    return directory


def test_disks_come_in_their_order(directory: Path) -> None:
    system, data = config.load(with_disks(directory)).vm["web1"].disk
    assert (system.name, system.path, system.format, system.size) == ("system", directory / "system.img", "raw", 0)
    assert (data.name, data.path, data.format, data.size) == ("data", directory / "data.img", "qcow2", 8 << 30)


@pytest.mark.parametrize(("old", "new", "key", "cause"), [
    ('name = "data"', 'name = "system"', "vm.web1.disk[1].name", "another disk's name"),
    ('name = "data"', 'name = "Data"', "vm.web1.disk[1].name", "no disk name"),
    ('name = "data"', f'name = "{"d" * 17}"', "vm.web1.disk[1].name", "no disk name"),
    ('size = "8GiB"', 'size = "1000B"', "vm.web1.disk[1].size", "no disk size"),
    ('path = "data.img"', 'path = "system.img"', "vm.web1.disk[1].path", "is disk system of VM web1 already"),
    ('path = "data.img"', 'path = "./x/../system.img"', "vm.web1.disk[1].path", "is disk system of VM web1 already"),
    ('path = "data.img"', 'path = "same.img"', "vm.web1.disk[1].path", "is disk system of VM web1 already"),
    ('path = "data.img"', 'path = "linked.img"', "vm.web1.disk[1].path", "is disk system of VM web1 already"),
])
def test_a_fault_of_a_disk_names_it(directory: Path, old: str, new: str, key: str, cause: str) -> None:
    (directory / "system.img").write_bytes(bytes(512))
    (directory / "same.img").hardlink_to(directory / "system.img")
    (directory / "linked.img").symlink_to("system.img")
    with pytest.raises(ConfigError, match=re.escape(cause)) as caught:
        config.load(with_disks(directory, DISK.replace(old, new)))
    assert caught.value.key == key and caught.value.hint and caught.value.line


def test_two_vms_cannot_have_one_image(directory: Path) -> None:
    other = (directory / "20-vm.toml").read_text().partition("[vm.web1.epoch]")[0]
    other = other.replace("web1", "web2").replace("00:10", "00:20").replace("10.77.0.10", "10.77.0.20")
    (directory / "30-vm.toml").write_text(other.replace("fd77::10", "fd77::20") + DISK.replace("web1", "web2"))
    with pytest.raises(ConfigError, match=re.escape("is disk system of VM web1 already")) as caught:
        config.load(with_disks(directory))
    assert caught.value.key == "vm.web2.disk[0].path" and caught.value.file == str(directory / "30-vm.toml")


def test_too_many_disks(directory: Path) -> None:
    text = "".join(f'[[vm.web1.disk]]\nname = "d{number}"\npath = "d{number}"\n' for number in range(17))
    with pytest.raises(ConfigError, match="17 disks"):
        config.load(with_disks(directory, text))


# --- volumes ---

VOLUME = """
[[vm.web1.volume]]
name = "vol"
at = "iscsi://10.0.0.1/iqn.2026-01.example:store/1"
user = "me"
secret = "vol.secret"
"""


def test_a_volume_and_where_its_password_is(directory: Path) -> None:
    [volume] = config.load(with_disks(directory, VOLUME)).vm["web1"].volume
    assert (volume.at, volume.user) == ("iscsi://10.0.0.1/iqn.2026-01.example:store/1", "me")
    assert volume.secret == directory / "vol.secret"


@pytest.mark.parametrize(("old", "new", "key", "cause"), [
    ('user = "me"\n', "", "vm.web1.volume[0].at", "belong together"),
    ("iscsi://", "smb://", "vm.web1.volume[0].at", "no place of a volume"),
    ('name = "vol"', 'name = "Vol"', "vm.web1.volume[0].at", "not usable"),
    (VOLUME, VOLUME + VOLUME, "vm.web1.volume[1].name", "another disk's name"),
    (VOLUME, VOLUME + VOLUME.replace('"vol"', '"two"'), "vm.web1.volume[1].at", "is volume vol of VM web1 already"),
])  # fmt: skip
def test_a_fault_of_a_volume_names_it(directory: Path, old: str, new: str, key: str, cause: str) -> None:
    with pytest.raises(ConfigError) as error:
        config.load(with_disks(directory, VOLUME.replace(old, new)))
    assert f"{key}: " in str(error.value) and cause in str(error.value)
