# SPDX-License-Identifier: GPL-2.0-or-later
"""A correct configuration to spoil."""

from collections.abc import Callable
from pathlib import Path

import pytest

HOSTS = """\
[host]
name = "alpha"
state_dir = "state"

[peer]
name = "beta"

[[link]]
name = "link0"
interface = "link0"
address = "169.254.77.1"
peer = "169.254.77.2"

[[link]]
name = "link1"
interface = "link1"
address = "169.254.78.1"
peer = "169.254.78.2"
port = 7781
"""
VM = """\
[vm.web1]
home = "alpha"
memory = "128MiB"
mac = "52:54:00:77:00:10"
ip = [
  "10.77.0.10",  # ] is no end
  "fd77::10",
]
bridge = "br0"
kernel = "vmlinuz"
append = '''
[not.a.table]
name = 3
'''

[vm.web1.epoch]
length = "10ms"

[vm.web1.limits]
held = "1GiB"
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "10-hosts.toml").write_text(HOSTS)
    (tmp_path / "20-vm.toml").write_text(VM)
    (tmp_path / "vmlinuz").write_bytes(b"kernel")
    return tmp_path


@pytest.fixture
def spoil(directory: Path) -> Callable[[str, str], Path]:
    """Replaces text that stands in one of the files; returns the directory."""

    def replace(old: str, new: str) -> Path:
        for file in directory.glob("*.toml"):
            text = file.read_text()
            if old in text:
                file.write_text(text.replace(old, new, 1))
                return directory
        raise AssertionError(f"{old!r} is in no file")

    return replace
