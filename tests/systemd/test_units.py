# SPDX-License-Identifier: GPL-2.0-or-later
"""The unit files: understood by systemd, tight, and no tighter than the service can live with."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import appliance
from appliance.lab import processes, topology
from appliance.lab.blueprint import VM, Options
from appliance.lab.lab import Lab
from appliance.lab.topology import HOSTS
from tests.lab.naming import given_out

UNITS = Path(appliance.__file__).parent / "systemd"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
EXPOSURE = {"holdfast": 35, "holdfast-witness": 20}
"""What systemd-analyze may find, in tenths of its points."""


def values(unit: str, key: str) -> list[str]:
    """All words of a key in a unit, drop-ins that are only suggested left out."""
    lines = (UNITS / f"{unit}.service").read_text().splitlines()
    return [word for line in lines if line.startswith(f"{key}=") for word in line.partition("=")[2].split()]


@needs_systemd
@pytest.mark.parametrize("unit", EXPOSURE)
def test_systemd_understands_it(unit: str, tmp_path: Path) -> None:
    for text in ((UNITS / f"{unit}.service").read_text(), "[Service]\nExecStart=/bin/true\nProtectEverything=yes\n"):
        file = tmp_path / f"{unit}.service"
        file.write_text(text.replace("/usr/bin/holdfast", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True,
                              timeout=60, check=False)
        ours = [line for line in done.stderr.splitlines() if f"{unit}.service" in line]
        assert bool(ours or done.returncode) == ("ProtectEverything" in text), done.stderr


@needs_systemd
@pytest.mark.parametrize("unit", EXPOSURE)
def test_it_is_tight(unit: str) -> None:
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE[unit]}",
                           str(UNITS / f"{unit}.service")], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:]


def test_every_capability_says_what_for() -> None:
    text = (UNITS / "holdfast.service").read_text()
    needed = values("holdfast", "CapabilityBoundingSet")
    assert needed == re.findall(r"^#   (CAP_\w+) +\S", text, re.MULTILINE)
    assert values("holdfast-witness", "CapabilityBoundingSet") == []


def test_the_vms_do_not_get_the_signal_that_ends_the_service() -> None:
    assert values("holdfast", "KillMode") == ["mixed"]
    assert values("holdfast", "Type") == values("holdfast-witness", "Type") == ["notify"]


class Systemd(threading.Thread):
    """What a service tells, and what there was when it said that it was ready."""

    def __init__(self, path: Path, netns: str) -> None:
        super().__init__(daemon=True)
        self._netns = netns
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.heard: list[str] = []
        self.armed: list[str] = []
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._socket.recv(4096).decode():
                if message == "READY=1":
                    with topology.inside(self._netns):
                        shown = subprocess.run(["tc", "filter", "show", "dev", f"ho-{VM}", "ingress"], timeout=20,
                                               capture_output=True, text=True, check=False).stdout
                        rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=20,
                                               check=False).stdout
                    self.armed = [word for word in ("guard", "holdfast") if word in shown + rules]
                self.heard.append(message)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.join(10)


@pytest.fixture
def name() -> Iterator[str]:
    for give in given_out():
        yield give()


def confined(writable: Path) -> list[str]:
    """As near to the unit as can be had without systemd: its capabilities, no new ones, a file system to read."""
    capabilities = ",".join("+" + one.removeprefix("CAP_").lower()
                            for one in values("holdfast", "CapabilityBoundingSet"))
    script = (f'mount --make-rprivate / && mount --bind {writable} {writable} && mount -o remount,bind,ro / '
              f'&& exec setpriv --no-new-privs --bounding-set=-all,{capabilities} --inh-caps=-all -- "$@"')
    return ["unshare", "--mount", "sh", "-c", script, "sh"]


@pytest.mark.slow
@needs_root
@pytest.mark.timeout(240)
def test_a_pair_lives_within_the_unit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Protected, a death, a takeover and a return, with no more than the unit allows; systemd hears all of it."""
    plain = processes.command

    def command(lab: str, place: str, words: Sequence[str]) -> list[str]:
        made = plain(lab, place, words)
        directory = Path("/run/holdfast/lab") / lab / place
        return made[:4] + confined(directory) + made[4:] if place in HOSTS and "service" in words else made

    monkeypatch.setattr(processes, "command", command)
    ends = {host: Systemd(tmp_path / host, topology.netns(name, host)) for host in HOSTS}
    told = {host: {"NOTIFY_SOCKET": str(tmp_path / host), "WATCHDOG_USEC": "1000000"} for host in HOSTS}
    try:
        lab = Lab.up(Options(name=name), extra_environment=told)
        for host, end in ends.items():
            assert end.armed == ["guard", "holdfast"], f"{host} was ready before it was armed"
            status = Path(f"/proc/{lab.service(host).pid}/status").read_text()  # type: ignore[union-attr]
            assert "NoNewPrivs:\t1" in status
        first = lab.host_status("alpha")["vms"][VM]  # type: ignore[index]
        assert first["tracker"] and first["gate"]["backend"]
        lab.fault("crash", "alpha")
        deadline = time.monotonic() + 20
        while not any("beta" not in one and "primary solo" in one for one in ends["beta"].heard):
            assert time.monotonic() < deadline, ends["beta"].heard
            time.sleep(0.02)
        lab.heal("alpha", told["alpha"])
        lab.wait_protected(60)
        lab.service("beta").signal(15)  # type: ignore[union-attr, arg-type]
        while "STOPPING=1" not in ends["beta"].heard:
            assert time.monotonic() < deadline + 60
            time.sleep(0.02)
        log = "".join(lab.log_tail("alpha", 500) + lab.log_tail("beta", 500))
        assert "denied" not in log.lower() and "not permitted" not in log.lower() and "read-only" not in log.lower()
    finally:
        lab.down()
        for end in ends.values():
            end.close()
    heard = ends["beta"].heard
    statuses = [one for one in heard if one.startswith("STATUS=")]
    assert f"STATUS={VM} backup standby (term 1); alpha up" in statuses
    assert any(one.startswith(f"STATUS={VM} primary protected (term 2)") for one in statuses)
    assert len(statuses) == len(set(zip(statuses, statuses[1:], strict=False))) + 1, "told when it changes, not else"
    assert heard.count("WATCHDOG=1") > 3 and heard.count("READY=1") == 1


def test_a_witness_needs_no_privilege(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "keys").mkdir()
    end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    end.bind(str(tmp_path / "notify"))
    end.settimeout(20)
    without = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--"] if not os.geteuid() else []
    words = ["witness", "--listen", listen, "--keys", str(tmp_path / "keys"), "--state-dir", str(tmp_path / "state")]
    with end, subprocess.Popen([*without, sys.executable, "-m", "appliance.cli", *words],
                               env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}) as witness:
        assert end.recv(4096) == b"READY=1"
        assert end.recv(4096) == f"STATUS=serves {listen}, 0 records".encode()
        witness.terminate()
        assert end.recv(4096) == b"STOPPING=1"
        assert witness.wait(20) == 0
