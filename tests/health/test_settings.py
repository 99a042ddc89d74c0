# SPDX-License-Identifier: GPL-2.0-or-later
"""The section [health] is read as written, or refused with key, cause and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import config
from appliance.errors import ConfigError
from tests.config.conftest import HOSTS, VM

SECOND = VM.replace("web1", "web2").replace("00:10", "00:11").replace("br0", "br1").replace(
    '"10.77.0.10"', '"10.77.0.11"').replace("fd77::10", "fd77::11")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "holdfast.toml").write_text(HOSTS + VM)
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    return tmp_path


def load(directory: Path, *lines: str) -> config.Health:
    (directory / "health.toml").write_text("\n".join(["[health]", *lines, ""]))
    return config.load(directory).health


def test_what_is_written_arrives(directory: Path) -> None:
    found = load(directory, 'probe = ["10.77.0.1", "10.77.0.2@br0"]', 'disk_max = "2s"', "errors_warn = 2")
    assert found.probe == ("10.77.0.1", "10.77.0.2@br0")
    assert (found.disk_max, found.errors_warn, found.rounds) == (2.0, 2.0, 3)


FAULTS = {
    "IPv6 probe": ('probe = ["fd77::1"]', "probe", "no IPv4 address", "10.77.0.1"),
    "no address": ('probe = ["gateway"]', "probe", "not an IP address", "10.77.0.10"),
    "no text": ("probe = [1]", "probe", "nothing to probe", "10.77.0.1@br0"),
    "strange bridge": ('probe = ["10.77.0.1@br9"]', "probe", "no VM is on the bridge br9", "br0"),
    "probe of a VM": ('probe = ["10.77.0.10"]', "probe", "a VM's own", "routers"),
    "probe twice": ('probe = ["10.77.0.1", "10.77.0.1"]', "probe", "twice", "enough"),
    "interval": ('interval = "1ms"', "interval", "from 100ms to 60s", "1s is usual"),
    "rounds": ("rounds = 0", "rounds", "from 1 to 1000", "3 is usual"),
    "no warning": ('disk_warn = "20s"', "disk_warn", "at most disk_max", "before"),
    "space": ('space_min = "1GiB"', "space_warn", "less than space_min", "before"),
    "share": ("steal_warn = 20.0", "steal_warn", "no share", "0 to 1"),
    "nothing": ("load_warn = 0.0", "load_warn", "above 0", "4"),
    "unknown": ("load_max = 1", "load_max", "unknown key", "load_warn"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_names_key_and_remedy(directory: Path, case: str) -> None:
    line, key, cause, remedy = FAULTS[case]
    with pytest.raises(ConfigError) as caught:
        load(directory, line)
    assert caught.value.key == f"health.{key}"
    assert cause in caught.value.reason and remedy in caught.value.hint


def test_with_two_bridges_a_probe_names_its_own(directory: Path) -> None:
    (directory / "second.toml").write_text(SECOND)
    with pytest.raises(ConfigError, match="could be behind any of br0, br1"):
        load(directory, 'probe = ["10.77.0.1"]')
    assert load(directory, 'probe = ["10.77.0.1@br1"]').probe == ("10.77.0.1@br1",)
