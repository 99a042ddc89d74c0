# SPDX-License-Identifier: GPL-2.0-or-later
"""The [arbiter] section: what contradicts itself or lacks something is refused with the remedy."""

from pathlib import Path

import pytest

from appliance import config
from appliance.errors import ConfigError

WITNESS = 'kind = "witness"\naddress = "192.0.2.5:7790"\nkey_file = "vmlinuz"\n'
ETCD = 'kind = "etcd"\nendpoints = ["https://192.0.2.7:2379", "http://[fd00::7]:2379/"]\nca_file = "vmlinuz"\n'


def write(directory: Path, section: str) -> Path:
    (directory / "30-arbiter.toml").write_text(f"[arbiter]\n{section}")
    return directory


@pytest.mark.parametrize("section", ["", WITNESS, ETCD, 'kind = "none"\naccept_split_brain_risk = true\n',
                                     f'{WITNESS}pair = "web-pair"\ntimeout = "300ms"\n'])
def test_what_is_right(directory: Path, section: str) -> None:
    config.load(write(directory, section))


def test_files_are_found_beside_the_configuration(directory: Path) -> None:
    found = config.load(write(directory, WITNESS)).arbiter
    assert (found.key_file, found.address, found.timeout) == (directory / "vmlinuz", "192.0.2.5:7790", 1.0)


# The section; then the key, and words of the cause and of the remedy.
FAULTS = {
    "no such kind": ('kind = "raft"\n', "kind", "raft", "witness"),
    "no address": (WITNESS.replace('"192.0.2.5:7790"', '""'), "address", "HOST:PORT", "192.0.2.5"),
    "no port": (WITNESS.replace(":7790", ":0"), "address", "HOST:PORT", "192.0.2.5"),
    "no key": ('kind = "witness"\naddress = "192.0.2.5"\n', "key_file", "missing", "--make-key"),
    "no such key": (WITNESS.replace("vmlinuz", "key"), "key_file", "there is no file", "copy"),
    "no endpoints": ('kind = "etcd"\n', "endpoints", "1 to 9", "https://"),
    "no URL": (ETCD.replace("https://", ""), "endpoints", "no URL", "https://"),
    "URL with a path": (ETCD.replace(":2379/", ":2379/v3"), "endpoints", "no URL", "https://"),
    "no such certificate": (ETCD.replace("vmlinuz", "ca.pem"), "ca_file", "there is no file", "path"),
    "half a certificate": (f'{ETCD}cert_file = "vmlinuz"\n', "cert_file", "cert_key_file", "both"),
    "of another kind": (f'{WITNESS}endpoints = ["http://192.0.2.7:2379"]\n', "endpoints", 'kind = "etcd"', "kind"),
    "risk with a witness": (f"{WITNESS}accept_split_brain_risk = true\n", "accept_split_brain_risk", "none", "remove"),
    "pair": (f'{WITNESS}pair = "../x"\n', "pair", "no name", "small letters"),
    "too short": (f'{WITNESS}timeout = "50ms"\n', "timeout", "100ms", "1s"),
    "too long": (f'{WITNESS}timeout = "1min"\n', "timeout", "10s", "1s"),
}  # fmt: skip


@pytest.mark.parametrize(("section", "key", "cause", "remedy"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong(directory: Path, section: str, key: str, cause: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(directory, section))
    told = str(caught.value)
    assert f"arbiter.{key}" in told and "30-arbiter.toml" in told, told
    assert cause in told and remedy in told, told
