# SPDX-License-Identifier: GPL-2.0-or-later
"""How long an operator waits for `holdfast status`: from the start of the process to its end, on a busy pair."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from appliance.lab import blueprint
from appliance.lab.figures import percentile
from appliance.registry import CONTROL_VARIABLE
from tests.bench import scene

METHOD = "a process each, python -m appliance.cli, its output read from a pipe; the VM is protected and its client busy"


def run(*, times: int = 40, **_: Any) -> list[dict[str, Any]]:
    """Needs root. `times` calls, one after another, on the primary; and as many that only start Python."""
    with scene.lab("operator") as lab, scene.client(lab, "incr,set,echo"):
        control = str(blueprint.control_path(lab.name, "alpha"))
        time.sleep(2.0)
        status = measured([sys.executable, "-m", "appliance.cli", "status"], control, times)
        bare = measured([sys.executable, "-c", "pass"], control, times)
        setting = scene.setting(lab)
    conditions = {**setting, "times": times, "method": METHOD, "wall_ms": scene.spread(status),
                  "python_alone_ms": scene.spread(bare)}
    return [scene.result("operator.status.wall", percentile(status, 50), "ms", **conditions),
            scene.result("operator.status.wall.p95", percentile(status, 95), "ms", **conditions)]


def measured(command: list[str], control: str, times: int) -> list[float]:
    """Wall times in milliseconds. Raises RuntimeError when the command fails."""
    environment = {**os.environ, CONTROL_VARIABLE: control}
    found = []
    for _ in range(times):
        begun = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
        found.append((time.monotonic() - begun) * 1e3)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")
    return found
