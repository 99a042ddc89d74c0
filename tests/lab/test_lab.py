# SPDX-License-Identifier: GPL-2.0-or-later
"""Making, finding and removing labs, whole and half-made ones, and the commands that do it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance import cli, config
from appliance.errors import HoldfastError, Unavailable, UsageError
from appliance.exits import Exit
from appliance.lab import blueprint, topology
from appliance.lab.blueprint import Options
from appliance.lab.lab import Lab, down
from appliance.lab.processes import Process
from tests.lab.conftest import alive_with
from tests.lab.naming import traces

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Names = Callable[[], str]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = cli.main(words)
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"epoch": 0.01, "vcpus": 2, "memory": 256 << 20, "tracker": "compare", "log": "debug"},
        {"append": 'x="a b" \\ \u00e4 # [no]', "hello": 0.05, "timeout": 0.5, "in_flight": 1,
         "arbiter": "none"},
    ],
)
def test_the_hosts_configuration_is_one_the_service_accepts(
    image: Path, change: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blueprint, "ROOT", image.parent)
    options = Options(name="x", kernel=str(image), initrd=str(image), qemu=sys.executable, **change)  # type: ignore[arg-type]
    blueprint.write_third(options)
    for host, peer in (("alpha", "beta"), ("beta", "alpha")):
        home = image.parent / host
        home.mkdir()
        (home / "holdfast.toml").write_text(blueprint.configuration(options, host))
        found = config.load(home)
        vm = found.vm["web1"]
        assert (found.host.name, found.peer.name, vm.home) == (host, peer, "alpha")
        assert (vm.memory, vm.vcpus, vm.tracker) == (options.memory, options.vcpus, options.tracker)
        assert (vm.epoch.mode, vm.epoch.in_flight) == ("fixed" if options.epoch else "adaptive", options.in_flight)
        assert vm.append.endswith(options.append) and "hf.ip=10.77.0.10/24" in vm.append
        assert (found.timing.hello, found.timing.timeout) == (options.hello, options.timeout)
        assert found.arbiter.kind == options.arbiter
        assert [(link.address, link.peer) for link in found.link] == [
            (topology.link_address(number, host), topology.link_address(number, peer)) for number in (0, 1)
        ]


def test_a_lab_is_found_by_name_and_goes_without_trace(lab: Lab) -> None:
    again = Lab.load(lab.name)
    assert again.options == lab.options
    status = again.status()
    assert status["schema"] == "holdfast.lab/1"
    assert status["vm"]["ip"] == "10.77.0.10" and status["vm"]["mac"] == "52:54:00:77:00:10"
    assert status["hosts"]["alpha"]["netns"] == f"hf-{lab.name}-alpha"
    assert status["hosts"]["beta"]["service_pid"] is None and status["hosts"]["beta"]["role"] is None
    assert len(again.down()) == 6
    assert traces(lab.name) == []
    assert again.down() == []
    with pytest.raises(Unavailable, match="no lab"):
        Lab.load(lab.name)


def test_a_name_is_taken_once(lab: Lab) -> None:
    with pytest.raises(Unavailable, match="already") as caught:
        Lab.create(lab.options)
    assert f"lab down --name {lab.name}" in caught.value.hint
    assert Lab.load(lab.name).status()["hosts"]


@pytest.mark.parametrize("name", ["", "..", "a/b", "-a", "A", "a" * 40, "a b", "a\0"])
def test_a_name_cannot_lead_elsewhere(name: str, image: Path) -> None:
    for act in (down, Lab.load):
        with pytest.raises(UsageError, match="no name for a lab"):
            act(name)
    with pytest.raises(UsageError):
        Lab.create(Options(name=name, kernel=str(image)))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"kernel": "/nothing/vmlinuz"}, "no readable file /nothing/vmlinuz"),
        ({"initrd": "/nothing/initrd"}, "no readable file /nothing/initrd"),
        ({"qemu": "qemu-system-none"}, "no program qemu-system-none"),
        ({"vcpus": 0}, "0 virtual CPUs"),
    ],
)
def test_what_cannot_become_a_lab_is_refused_before_anything_is_made(
    names: Names, image: Path, change: dict[str, object], cause: str
) -> None:
    name = names()
    with pytest.raises(HoldfastError, match=cause) as caught:
        Lab.create(Options(**{"name": name, "kernel": str(image), "qemu": sys.executable, **change}))  # type: ignore[arg-type]
    assert caught.value.hint
    assert traces(name) == []


def test_a_missing_image_is_told_with_the_remedy(
    names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_IMAGE_DIR", str(tmp_path))
    with pytest.raises(Unavailable, match="no guest image") as caught:
        Lab.create(Options(name=names()))
    assert "make image" in caught.value.hint


def test_making_fails_half_way_and_leaves_nothing(names: Names, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(build: object, lab: str) -> None:
        raise OSError("no veth today")

    name = names()
    monkeypatch.setattr(topology, "_build_beta", fail)
    with pytest.raises(Unavailable, match="no veth today"):
        Lab.create(Options(name=name, kernel=str(image), qemu=sys.executable))
    assert traces(name) == []


@pytest.mark.parametrize("part", ["directory", "namespace", "unreadable state", "foreign state"])
def test_a_part_of_a_lab_goes_too(names: Names, part: str) -> None:
    name = names()
    home = blueprint.directory(name)
    if part == "namespace":
        subprocess.run(["ip", "netns", "add", topology.netns(name, "beta")], check=True, timeout=10)
    else:
        home.mkdir(parents=True)
    if part == "unreadable state":
        (home / "state.json").write_text('{"options": ')
    if part == "foreign state":
        (home / "state.json").write_text('{"options": {}, "services": {"alpha": {"pid": 1, "started": 0}}}')
    assert len(down(name)) == 1
    assert traces(name) == []


def test_what_runs_in_a_lab_goes_with_it_but_strangers_stay(lab: Lab, sleeper: Callable[..., Process]) -> None:
    own = [sleeper(lab, "alpha"), sleeper(lab, "client")]
    stranger = sleeper(lab, "beta", stranger=True)
    alive_with(lab, {"alpha": own[0]})
    assert {f"process {process.pid}" for process in own} <= set(lab.down())
    assert not any(process.alive for process in own) and stranger.alive
    left = Path(f"/proc/{stranger.pid}/net/dev").read_text()
    assert "up0" not in left and "link0" not in left


# --- the commands ---


def test_exec_runs_there_with_holdfast_at_hand(lab: Lab) -> None:
    def exec_there(where: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "appliance.cli", "lab", "exec", "--name", lab.name, where, "--", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert "10.77.0.1/24" in exec_there("client", "ip", "-br", "address").stdout
    assert exec_there("alpha", "sh", "-c", "exit 7").returncode == 7
    control = exec_there("alpha", "sh", "-c", "cd /; echo $HOLDFAST_CONTROL; exec holdfast status")
    assert control.stdout.strip() == str(blueprint.control_path(lab.name, "alpha"))
    assert control.returncode == 3 and f"{lab.name}/alpha/run/control.sock" in control.stderr
    assert exec_there("client", "sh", "-c", "echo ${HOLDFAST_CONTROL-none}").stdout == "none\n"
    named = exec_there("client", "holdfast", "lab", "status", "-j")  # which lab: the one it runs in
    assert json.loads(named.stdout)["name"] == lab.name
    assert exec_there("alpha").returncode == 64


def test_commands_answer_in_json_and_by_exit_code(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "lab", "status", "-j", "--name", lab.name)
    assert code == 1 and json.loads(out)["hosts"]["alpha"]["cables_cut"] == []
    code, out, _ = run(capsys, "lab", "fault", "-j", "--name", lab.name, "uplink-down", "beta")
    assert code == 0 and json.loads(out)["fault"] == "uplink-down"
    code, out, _ = run(capsys, "lab", "status", "--name", lab.name)
    assert code == 1 and "cut: up0" in out
    code, out, _ = run(capsys, "lab", "fault", "-j", "--name", lab.name, "flood", "beta")
    assert code == 64 and json.loads(out)["error"]["code"] == "usage"
    code, out, _ = run(capsys, "lab", "down", "-j", "--name", lab.name)
    assert code == 0 and json.loads(out)["changed"] is True
    code, out, _ = run(capsys, "lab", "down", "-j", "--name", lab.name)
    assert code == 0 and json.loads(out) == {
        "schema": "holdfast.lab-down/1", "name": lab.name, "changed": False, "removed": [],
    }  # fmt: skip
    code, _, err = run(capsys, "lab", "heal", "alpha", "--name", lab.name)
    assert code == Exit.DEGRADED
    assert err == f"holdfast: there is no lab '{lab.name}'\n  holdfast lab up --name {lab.name}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["lab"],
        ["lab", "up", "--memory", "lots"],
        ["lab", "up", "--epoch", "25minutes"],
        ["lab", "fault", "crash", "gamma"],
        ["lab", "exec", "nowhere", "--", "true"],
        ["lab", "up", "--accel", "warp"],
    ],
)
def test_a_wrong_command_line_is_refused(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = run(capsys, *words)
    assert code == 64 and out == "" and err.startswith("holdfast: ") and "--help" in err


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--memory", "256"], "memory", 256 << 20),
        (["--memory", "1G"], "memory", 1 << 30),
        (["--memory", "64MiB"], "memory", 64 << 20),
        (["--epoch", "adaptive"], "epoch", None),
        (["--epoch", "25ms"], "epoch", 0.025),
        (["--epoch", "10"], "epoch", 0.01),
        ([], "epoch", None),
        (["--vcpus", "2"], "vcpus", 2),
        (["--append", "a=1 b"], "append", "a=1 b"),
    ],
)
def test_options_of_up(monkeypatch: pytest.MonkeyPatch, words: list[str], field: str, value: object) -> None:
    class Taken(Exception):
        pass

    def take(options: Options, **_: object) -> Lab:
        assert getattr(options, field) == value
        raise Taken

    monkeypatch.setattr(Lab, "up", take)
    with pytest.raises(Taken):
        cli.main(["lab", "up", *words])
