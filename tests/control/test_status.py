# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast status`: one screen for people, the reply itself for programs, the exit code for scripts."""

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.cli import main, status
from appliance.cli.screen import Screen
from tests.control.conftest import Running

REPLY: dict[str, Any] = {
    "schema": "holdfast.status/1",
    "host": "alpha",
    "pid": 100,
    "peer": {
        "name": "beta",
        "state": "up", "lease_ms": 80, "timeout_ms": 300,
        "links": [
            {"name": "link0", "state": "up", "rtt_us": 120},
            {"name": "link1", "state": "down", "rtt_us": None},
        ],
    },
    "vms": {
        "web1": {
            "role": "primary", "phase": "protected", "reason": "the backup has a whole replica", "term": 7,
            "epoch": 184213, "committed": 184212, "qemu_pid": 4123, "tracker": "uffd-wp",
            "gate": {"backend": "ring", "held_frames": 12, "held_bytes": 9626, "released_frames": 3,
                     "overflow_frames": 0},
            "guard": {"open": True, "passed_frames": 3, "early_frames": 0, "closed_frames": 0,
                      "expired_frames": 0, "unstamped_frames": 0},
            "pause_ms": {"last": 3.1, "p50": 3.4, "p99": 7.0, "max": 12.5}, "in_flight": 1,
            "sync": {"done_bytes": 1 << 20, "total_bytes": 128 << 20, "round": 2, "bytes_per_s": 64 << 20,
                     "left_s": 2.0},
            "paused": True, "conditions": {"unfit": "no memory", "move": "", "shunt": True},
            "detour": {"end": "near", "link": "link0", "reason": ""}, "events": [],
        }
    },
}  # fmt: skip
SCREEN = """\
host alpha      peer beta       up              lease 80 ms  silence 300 ms
  link0         up              rtt 120 us
  link1         down
vm web1         primary         protected       term 7  epoch 184213  committed 184212
  reason        the backup has a whole replica
  unprotected   by the operator, until holdfast protect web1
  peer unfit    no memory
  detour        its traffic goes through the peer's uplink, over link0
  qemu          pid 4123        tracker uffd-wp
  sync          round 2         1.0 MiB of 128.0 MiB  64.0 MiB/s      2.0 s left
  gate          ring            held 12 frames, 9.4 KiB  released 3  overflow 0
  guard         open            passed 3 frames  early 0  closed 0  expired 0  unstamped 0
  pause         last 3.1  p50 3.4  p99 7.0  max 12.5 ms  in flight 1 epochs"""


def test_the_screen() -> None:
    assert status.render(REPLY) == SCREEN
    coloured = status.render(REPLY, Screen(colour="always"))
    assert "\033[32mprotected\033[0m" in coloured and "\033[31mdown\033[0m" in coloured
    for code in ("\033[31m", "\033[32m", "\033[33m", "\033[0m"):
        coloured = coloured.replace(code, "")
    assert coloured == SCREEN


def test_a_reply_with_holes_is_still_shown() -> None:
    assert "host None" in status.render({})
    empty = {"host": "beta", "vms": {"web1": {"gate": None, "guard": None, "sync": None, "qemu_pid": None}}}
    assert "vm web1" in status.render(empty)


@pytest.mark.parametrize(
    ("phases", "code"),
    [
        ([], 0), (["protected"], 0), (["standby"], 0), (["protected", "standby"], 0), (["solo"], 1),
        (["syncing", "standby"], 1), (["taking-over"], 1), (["failed"], 2), (["protected", "failed"], 2),
        (["fenced"], 2), ([None], 1),
    ],
)  # fmt: skip
def test_the_exit_code_says_how_safe_the_vms_are(phases: list[str], code: int) -> None:
    vms = {str(number): {"phase": phase} for number, phase in enumerate(phases)}
    assert status.exit_code({"vms": vms}) == code


@pytest.fixture
def service(server: Running, tmp_path: Path) -> Path:
    """The control socket of something that answers `status`."""

    async def status(args: dict[str, Any]) -> dict[str, Any]:
        return REPLY

    server.server._verbs["status"] = status
    return server.path


def test_the_command(
    service: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status", "--control", str(service)]) == 0
    assert capsys.readouterr().out == SCREEN + "\n"
    monkeypatch.setenv("HOLDFAST_CONTROL", str(service))
    assert main(["status", "-j"]) == 0
    told = capsys.readouterr().out
    assert json.loads(told) == REPLY and told.count("\n") == 1
    assert main(["status", "--pretty"]) == 0
    assert capsys.readouterr().out.startswith('{\n  "schema"')
    assert main(["status", "--control", str(service) + "x", "-j"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "unreachable"
