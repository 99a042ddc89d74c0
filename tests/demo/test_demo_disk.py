# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo of the disk, short, as a person runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.lab.lab import down
from tests.lab.naming import traces

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def name() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("a lab needs root")
    if not (ROOT / "build" / "image-disk" / "disk.img").exists():
        pytest.skip("the disk image is not built: make image-disk")
    given = f"tdd{os.getpid()}"
    yield given
    left = traces(given)
    down(given)
    assert not left, left


def start(name: str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "appliance.lab.demo_disk", "--out", str(out), "--name", name, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.timeout(300)
def test_a_database_outlives_its_hosts(name: str, tmp_path: Path) -> None:
    demo = start(name, tmp_path, "--crashes", "2", "--seed", "3")
    said, _ = demo.communicate(timeout=290)
    assert demo.returncode == 0, said
    assert "every promise kept" in said and "both hosts lose power" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == "holdfast.demo/1"
    assert [one["victim"] for one in report["failovers"]] == ["alpha", "beta"]
    assert [report["client"][key] for key in ("resets", "lost_acked_writes", "corrupt_downloads")] == [0, 0, 0]
    disk = report["disk"]
    assert (disk["crashes"], disk["seed"]) == (2, 3)
    assert [disk[f"{what}"] for what in
            ("lost_acked_transactions", "transactions_twice", "transactions_wrong", "bad_checksums")] == [0] * 4
    assert disk["transactions"] > 100 and disk["amcheck"] == {"runs": 4, "problems": 0}
    assert disk["images"] == {"compared": 4, "identical": 4, "clean_file_systems": 4}
    assert [one["after"].partition(",")[0] for one in disk["inspections"]] == [
        "crash 1", "crash 2", "the last transaction", "the loss of power"]  # fmt: skip
    acknowledged = (tmp_path / "ledger.txt").read_text().count("+")
    assert acknowledged <= disk["transactions"] + 4 and (tmp_path / "alpha.log").exists()
