# SPDX-License-Identifier: GPL-2.0-or-later
"""Fault injection: it hits where and when it was told to, and cannot be armed wrongly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vmlink import inject

ROOT = Path(__file__).resolve().parents[2]
PASS = """
from vmlink import inject
for name in {names!r}:
    try:
        inject.point(name)
    except inject.Injected as fault:
        print("raised", fault, flush=True)
    print(name, flush=True)
"""


def run(armed: str, *names: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PASS.format(names=names)], cwd=ROOT, text=True,
                            env={**os.environ, "HOLDFAST_INJECT": armed}, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE)


def said(armed: str, *names: str) -> tuple[int, str, str]:
    process = run(armed, *names)
    out, err = process.communicate(timeout=20)
    return process.returncode, out, err


def test_unarmed_nothing_happens() -> None:
    assert said("", *inject.POINTS) == (0, "".join(f"{name}\n" for name in inject.POINTS), "")


def test_kill_at_the_second_passage() -> None:
    code, out, _ = said("epoch.sent:kill:2", "epoch.sent", "epoch.acked", "epoch.sent", "epoch.acked")
    assert (code, out) == (-signal.SIGKILL, "epoch.sent\nepoch.acked\n")


def test_raise_once() -> None:
    code, out, _ = said("sync.round:raise", "sync.round", "sync.round")
    assert (code, out) == (0, "raised sync.round\nsync.round\nsync.round\n")


def test_pause_and_go_on() -> None:
    process = run("replica.acked:pause", "replica.acked")
    assert os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT) is not None
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=20) == ("replica.acked\n", "")


def test_a_file_arms_a_running_process_once(tmp_path: Path) -> None:
    order = tmp_path / "order"
    order.write_text("epoch.sent:raise:2\n")
    code, out, _ = said(f"@{order}", "epoch.acked", "epoch.sent", "epoch.sent", "epoch.sent")
    assert (code, out) == (0, "epoch.acked\nepoch.sent\nraised epoch.sent\nepoch.sent\nepoch.sent\n")
    assert not order.exists()
    assert said(f"@{order}", "epoch.sent") == (0, "epoch.sent\n", "")


@pytest.mark.parametrize("text", [
    "nowhere:kill", "epoch.sent", "epoch.sent:explode", "epoch.sent:kill:x", "epoch.sent:kill:-1",
    "epoch.sent:kill:0", "epoch.sent:kill:\u00b2", ":kill", "epoch.sent:kill:1:1"])
def test_what_cannot_be_armed_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match="use POINT:kill"):
        inject.parse(text)


def test_a_wrong_environment_ends_the_process() -> None:
    code, out, err = said("nowhere:kill", "epoch.sent")
    assert (code, out) == (1, "") and "POINT one of checkpoint.stopped" in err and "Traceback" not in err
