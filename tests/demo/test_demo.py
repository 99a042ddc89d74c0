# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo as a person runs it: every promise kept, and nothing left behind even when interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance.exits import Exit
from appliance.lab import blueprint

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _needs_the_image() -> None:
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")
    if not (ROOT / "build" / "image" / "vmlinuz").exists():
        pytest.skip("the guest image is not built: make image")


def start(name: str, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "appliance.lab.demo", "--out", str(out), "--name", name]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_nothing_left(name: str) -> None:
    assert not blueprint.directory(name).exists()
    listing = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=10).stdout
    assert f"hf-{name}-" not in listing
    mark = f"HOLDFAST_LAB={name}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                assert mark not in (entry / "environ").read_bytes().split(b"\0"), f"process {entry.name} is left"
            except OSError:
                continue  # gone meanwhile


@pytest.mark.timeout(240)
def test_the_demo_keeps_every_promise_within_three_minutes(tmp_path: Path) -> None:
    begun = time.monotonic()
    demo = start("tdemo", tmp_path)
    said, _ = demo.communicate(timeout=230)
    assert demo.returncode == 0, said
    assert time.monotonic() - begun < 180
    assert "every promise kept" in said and "crash of alpha" in said and "crash of beta" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert [one["victim"] for one in report["failovers"]] == ["alpha", "beta"]
    for failover in report["failovers"]:
        assert all(failover[f"{key}_ms"] > 0 for key in ("gap", "detect", "resume", "resync"))
    assert report["client"]["requests"] > 1000
    assert [report["client"][key] for key in ("resets", "lost_acked_writes", "corrupt_downloads")] == [0, 0, 0]
    assert report["guard"] == {"early_frames": 0}
    assert report["checkpoint"]["count"] > 100 and report["echo_ms"]["p50"] > 0
    assert (tmp_path / "timeline.png").read_bytes().startswith(b"\x89PNG")
    assert_nothing_left("tdemo")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("moment", ["service started", "the client drives it", "crashes"])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, moment: str) -> None:
    demo = start("tdemoint", tmp_path)
    assert demo.stdout is not None
    for line in demo.stdout:
        if moment in line:
            break
    demo.send_signal(signal.SIGINT)
    demo.send_signal(signal.SIGINT)  # the impatient press twice
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, said
    assert_nothing_left("tdemoint")
    assert not (tmp_path / "report.json").exists()


def test_a_second_demo_beside_the_first_is_refused_and_does_no_harm(tmp_path: Path) -> None:
    blueprint.directory("tdemotwo").mkdir(parents=True)
    try:
        demo = start("tdemotwo", tmp_path)
        said, _ = demo.communicate(timeout=60)
        assert demo.returncode == Exit.DEGRADED and "holdfast lab down --name tdemotwo" in said
        assert blueprint.directory("tdemotwo").exists()
    finally:
        blueprint.directory("tdemotwo").rmdir()
