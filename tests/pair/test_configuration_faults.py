# SPDX-License-Identifier: GPL-2.0-or-later
"""Hosts that cannot do their part: each says why, in its log and status, and is well as soon as the cause is gone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.exits import Exit
from appliance.lab import blueprint
from appliance.lab.blueprint import VM, Options
from appliance.lab.lab import Lab
from tests.pair.pair import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.fixture
def lab(fresh_name: Callable[[], str]) -> Iterator[Callable[..., Lab]]:
    """Makes a lab without services."""
    made: list[Lab] = []

    def make(**change: str) -> Lab:
        image = blueprint.built_image()
        given = {"kernel": str(image / "vmlinuz"), "initrd": str(image / "initrd.img"), **change}
        made.append(Lab.create(Options(name=fresh_name(), **given)))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.down()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A memory file system too small for a VM."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "holdfast-test", place], check=True, timeout=10)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True, timeout=10)


def configure(lab: Lab, host: str, old: str, new: str) -> None:
    file = blueprint.host_directory(lab.name, host) / "config" / "holdfast.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def vm(lab: Lab, host: str) -> dict[str, Any]:
    found: dict[str, Any] = (lab.host_status(host) or {}).get("vms", {}).get(VM, {})
    return found


def says_failed(lab: Lab, host: str, *words: str) -> None:
    """Wait until the status of `host` is failed with these words, as JSON, as text and as an exit code."""
    def seen() -> bool:
        as_json = _status(lab, host, "-j")
        as_text = _status(lab, host)
        reason = json.loads(as_json.stdout)["vms"][VM]["reason"] if as_json.returncode == Exit.FAILED else ""
        return as_text.returncode == Exit.FAILED and all(word in as_text.stdout and word in reason for word in words)

    until(f"{host} says failed: {words}", seen)


def _status(lab: Lab, host: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = lab.command(host, ["holdfast", "status", *options])
    return subprocess.run(command, env=lab.environment(host), capture_output=True, text=True, timeout=20, check=False)


def plain_words(lab: Lab, host: str, *words: str) -> None:
    """The log of `host` has an error with these words, and no traceback."""
    log = blueprint.log_path(lab.name, host).read_text()
    assert "Traceback" not in log, log[-2000:]
    assert [line for line in log.splitlines() if "ERROR" in line and all(word in line for word in words)], log[-2000:]


def test_a_service_whose_kernel_is_missing_does_not_start(lab: Callable[..., Lab], tmp_path: Path) -> None:
    kernel = Path(shutil.copy(blueprint.built_image() / "vmlinuz", tmp_path / "my-kernel"))
    broken = lab(kernel=str(kernel))
    kernel.unlink()
    service = broken.start("alpha")
    assert os.waitstatus_to_exitcode(os.waitpid(service.pid, 0)[1]) == Exit.CONFIG
    log = blueprint.log_path(broken.name, "alpha").read_text()
    assert log.startswith("holdfast: ") and f"there is no file {kernel}" in log and "holdfast.toml" in log
    assert "build the image or correct the path" in log and "Traceback" not in log


def test_a_kernel_that_vanishes_and_comes_back(lab: Callable[..., Lab], tmp_path: Path) -> None:
    image = blueprint.built_image() / "vmlinuz"
    kernel = Path(shutil.copy(image, tmp_path / "my-kernel"))
    pair = lab()
    configure(pair, "alpha", f'kernel = "{image}"', f'kernel = "{kernel}"')
    pair.start("alpha")
    until("alpha is ready", lambda: vm(pair, "alpha").get("phase") == "waiting")
    kernel.rename(tmp_path / "elsewhere")
    pair.start("beta")
    says_failed(pair, "alpha", str(kernel))
    plain_words(pair, "alpha", str(kernel))
    (tmp_path / "elsewhere").rename(kernel)
    pair.wait_protected(30)


def test_no_room_for_the_replica(lab: Callable[..., Lab], small: Path) -> None:
    """The VM runs without protection meanwhile."""
    pair = lab()
    configure(pair, "beta", 'name = "beta"', f'name = "beta"\nram_dir = "{small}"')
    pair.start("alpha")
    pair.start("beta")
    needs = (f"guest memory does not fit in {small}", "needs 128 MiB")
    says_failed(pair, "beta", *needs)
    plain_words(pair, "beta", *needs)
    assert (vm(pair, "alpha")["role"], vm(pair, "alpha")["phase"]) == ("primary", "solo")
    assert _status(pair, "alpha").returncode == Exit.DEGRADED
    subprocess.run(["mount", "-o", "remount,size=256m", small], check=True, timeout=10)
    pair.wait_protected(30)
    assert vm(pair, "beta")["role"] == "backup"


def test_no_room_for_the_vm(lab: Callable[..., Lab], small: Path) -> None:
    pair = lab()
    configure(pair, "alpha", 'name = "alpha"', f'name = "alpha"\nram_dir = "{small}"')
    pair.start("alpha")
    pair.start("beta")
    says_failed(pair, "alpha", f"guest memory does not fit in {small}")
    plain_words(pair, "alpha", f"guest memory does not fit in {small}")


def test_a_qemu_that_exits_at_once(lab: Callable[..., Lab], tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-that-exits"
    qemu.write_text('#!/bin/sh\necho "no machine today" >&2\nexit 3\n')
    qemu.chmod(0o755)
    pair = lab(qemu=str(qemu))
    pair.start("alpha")
    pair.start("beta")
    says_failed(pair, "alpha", "exited with 3", "no machine today")
    plain_words(pair, "alpha", "exited with 3")


def test_a_replica_whose_qemu_exits_at_once(lab: Callable[..., Lab], tmp_path: Path) -> None:
    qemu = tmp_path / "qemu-that-exits"
    qemu.write_text('#!/bin/sh\necho "no machine today" >&2\nexit 3\n')
    qemu.chmod(0o755)
    pair = lab()
    good = shutil.which("qemu-system-x86_64")
    configure(pair, "beta", f'qemu = "{good}"', f'qemu = "{qemu}"')
    pair.start("alpha")
    pair.start("beta")
    says_failed(pair, "beta", "exited with 3", "no machine today")
    assert vm(pair, "alpha")["phase"] == "solo"
    qemu.write_text(f'#!/bin/sh\nexec {good} "$@"\n')
    pair.wait_protected(30)


@pytest.mark.parametrize(
    ("deprive", "cause", "code"),
    [
        ("mount -t tmpfs none /dev/net", "/dev/net/tun", Exit.DEGRADED),
        ("exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin", "CAP_NET_ADMIN", Exit.NO_PERMISSION),
    ],
    ids=["no tun", "no privilege"],
)
def test_a_host_without_what_the_front_needs(
    lab: Callable[..., Lab], deprive: str, cause: str, code: Exit
) -> None:
    pair = lab()
    service = f"holdfast service --config {blueprint.host_directory(pair.name, 'alpha')}/config"
    words = f"{deprive} {service}" if deprive.startswith("exec") else f"{deprive} && exec {service}"
    told = subprocess.run(
        pair.command("alpha", ["unshare", "--mount", "sh", "-c", words]), env=pair.environment("alpha"),
        capture_output=True, text=True, timeout=30, check=False,
    )
    assert told.returncode == code, told.stderr
    assert "holdfast: " in told.stderr and cause in told.stderr and "Traceback" not in told.stderr
    assert told.stderr.splitlines()[-1].startswith("  "), "what to do about it"


def test_hosts_that_differ_say_how(lab: Callable[..., Lab]) -> None:
    pair = lab()
    configure(pair, "beta", 'memory = "128MiB"', 'memory = "160MiB"')
    pair.start("alpha")
    pair.start("beta")
    until("beta says why", lambda: vm(pair, "beta").get("phase") == "failed" and vm(pair, "beta")["reason"])
    reason = vm(pair, "beta")["reason"]
    assert "memory" in reason.lower() or "ram" in reason.lower(), reason
    assert vm(pair, "alpha")["role"] == "primary"
    assert "Traceback" not in blueprint.log_path(pair.name, "beta").read_text()
