# SPDX-License-Identifier: GPL-2.0-or-later
"""Labs with the real services: up, every fault, heal, and down."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import cli
from appliance.errors import Unavailable
from appliance.lab import blueprint
from appliance.lab.blueprint import Options
from appliance.lab.lab import Lab
from tests.lab.conftest import inside, until
from tests.lab.naming import traces

BUILT = blueprint.built_image()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (BUILT / "vmlinuz").is_file(), reason="needs the guest image: make image"),
]
Names = Callable[[], str]


def options(name: str, **change: object) -> Options:
    # The image is named, so that `up` does not wait for the guest to boot.
    image = {"kernel": str(BUILT / "vmlinuz"), "initrd": str(BUILT / "initrd.img")}
    return Options(**{"name": name, **image, **change})  # type: ignore[arg-type]


@pytest.fixture
def protected(names: Names) -> Lab:
    return Lab.up(options(names()), timeout=60)


def primary(lab: Lab) -> tuple[str, int]:
    """The host that runs the VM, and its term."""
    hosts = lab.status()["hosts"]
    [(name, term)] = [(name, host["term"]) for name, host in hosts.items() if host["role"] == "primary"]
    return name, term


def test_up_and_down_from_the_command_line(names: Names, capsys: pytest.CaptureFixture[str]) -> None:
    name = names()
    assert cli.main(["lab", "up", "-j", "--name", name, "--epoch", "25ms", "--timeout", "60s"]) == 0
    told = capsys.readouterr()
    status = json.loads(told.out)
    assert "alpha: primary, protected" in told.err
    assert (status["schema"], status["name"]) == ("holdfast.lab/1", name)
    for host in status["hosts"].values():
        assert Path(f"/proc/{host['service_pid']}").is_dir() and Path(f"/proc/{host['qemu_pid']}").is_dir()
        assert Path(host["control"]).is_socket() and host["term"] >= 1
    assert cli.main(["lab", "status", "--name", name]) == 0
    lab = Lab.load(name)
    for host in ("alpha", "beta"):
        reply = subprocess.run(
            lab.command(host, ["holdfast", "status", "-j"]),
            env=lab.environment(host), capture_output=True, text=True, timeout=20,
        )  # fmt: skip
        assert (reply.returncode, json.loads(reply.stdout)["host"]) == (0, host)
    assert "1 received" in inside(lab, "client", "ping", "-c1", "-W5", status["vm"]["ip"])
    assert cli.main(["lab", "down", "--name", name]) == 0
    assert traces(name) == []


@pytest.mark.parametrize("kind", ["crash", "qemu-kill", "service-kill", "service-pause"])
@pytest.mark.parametrize("role", ["primary", "backup"])
def test_protection_returns_after_a_host_failed(protected: Lab, kind: str, role: str) -> None:
    speaker, term = primary(protected)
    other = "beta" if speaker == "alpha" else "alpha"
    victim = speaker if role == "primary" else other
    protected.fault(kind, victim)
    survivor = other if role == "primary" else speaker

    def alone() -> bool:
        status = protected.host_status(survivor) or {}
        vm = status.get("vms", {}).get("web1", {})
        return bool(vm.get("role") == "primary" and (vm["term"] > term or kind == "qemu-kill"))

    until(alone, 30)
    protected.heal(victim)
    status = protected.wait_protected(60)
    assert status["hosts"][survivor]["role"] == "primary"
    assert protected.heal(victim) == []


@pytest.mark.parametrize("kind", ["link-down:0", "link-down:1"])
def test_protection_outlives_the_loss_of_a_cable(protected: Lab, kind: str) -> None:
    before = primary(protected)
    protected.fault(kind, "alpha")
    epoch = protected.status()["hosts"]["beta"]["epoch"]
    until(lambda: (protected.status()["hosts"]["beta"]["epoch"] or 0) > epoch + 5, 30)
    assert protected.heal("alpha") == [f"cables back: link{kind[-1]}"]
    assert primary(protected) == before
    protected.wait_protected(30)


def test_a_fault_in_one_lab_does_not_touch_another(protected: Lab, names: Names) -> None:
    other = Lab.up(options(names()), timeout=60)
    before = {host: found["service_pid"] for host, found in other.status()["hosts"].items()}
    protected.fault("crash", "alpha")
    protected.down()
    assert {host: found["service_pid"] for host, found in other.status()["hosts"].items()} == before
    other.wait_protected(30)


def test_up_that_fails_tells_why_and_leaves_nothing(names: Names, tmp_path: Path) -> None:
    broken = tmp_path / "qemu-broken"
    broken.write_text("#!/bin/sh\necho no such machine >&2\nexit 1\n")
    broken.chmod(0o755)
    name = names()
    told: list[str] = []
    with pytest.raises(Unavailable):
        Lab.up(options(name, qemu=str(broken)), timeout=60, progress=told.append)
    assert any(line.startswith("alpha| ") and "no such machine" in line for line in told)
    assert traces(name) == []


def test_up_that_fails_can_be_kept(names: Names) -> None:
    name = names()
    refused = {"beta": {"HOLDFAST_INJECT": "no.such.point:kill"}}
    with pytest.raises(Unavailable, match="service of beta has ended"):
        Lab.up(options(name), timeout=60, keep=True, extra_environment=refused)
    kept = Lab.load(name)
    assert kept.service("beta") is None and kept.log_tail("beta")
    kept.heal("beta")  # the second start is without the injected fault
    kept.wait_protected(60)


def test_services_outlive_the_command_that_started_them(names: Names) -> None:
    name = names()
    script = "import sys; from tests.lab.test_services import *; Lab.up(options(sys.argv[1]), timeout=60)"
    subprocess.run([sys.executable, "-c", script, name], check=True, timeout=90, start_new_session=True)
    lab = Lab.load(name)
    lab.wait_protected(30)
    for host in ("alpha", "beta"):
        service = lab.service(host)
        assert service is not None and os.getsid(service.pid) == service.pid
