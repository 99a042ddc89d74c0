# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the benches and writes their figures: python -m tests.bench.run [--only GROUP] --out report.json

Figures are reported beside their goals, never asserted: the exit status is 0 when every group could be measured,
goal met or not, and 1 when one could not. A report holds one run only, so that all its figures belong together.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import HoldfastError

SCHEMA = "holdfast.bench/1"
GROUPS = ("checkpoint", "echo", "crash", "switchover", "gate", "track", "service", "operator", "monitoring", "disk",
          "disk_resync", "trace")
GOALS: dict[str, tuple[float, str]] = {
    "checkpoint.pause.p50": (5, "lower"),
    "checkpoint.pause.p99": (20, "lower"),
    "echo.25ms.p50": (28, "lower"),
    "echo.10ms.p50": (13, "lower"),
    "echo.adaptive.p50": (8, "lower"),
    "crash.gap.p50": (150, "lower"),
    "crash.gap.p95": (350, "lower"),
    "crash.resets": (0, "lower"),
    "crash.lost_acked_writes": (0, "lower"),
    "switchover.gap.p50": (60, "lower"),
    "switchover.broken": (0, "lower"),
    "gate.bulk.ratio": (0.5, "higher"),
    "trace.off.ratio": (0.98, "higher"),
    "trace.all.ratio": (0.9, "higher"),
    "trace.all.lost": (0.01, "lower"),
    "service.rss": (150, "lower"),
    "disk.seq.ratio": (0.7, "higher"),
    "disk.random.ratio": (0.5, "higher"),
    "disk.pause.p50": (10, "lower"),
    "disk.resync.moved": (2, "lower"),
    "operator.status.wall": (150, "lower"),
    "operator.status.wall.p95": (150, "lower"),
}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure, and write a report.")
    parser.add_argument("--only", metavar="GROUPS", help=f"comma between; of {', '.join(GROUPS)}")
    parser.add_argument("--out", type=Path, default=Path("build/bench/report.json"), metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="settings",
                        help="an option of the groups' run(), such as crashes=50")  # fmt: skip
    options = parser.parse_args(argv)
    options.groups = options.only.split(",") if options.only else list(GROUPS)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))} (there are {', '.join(GROUPS)})")
    try:
        options.settings = dict(setting(text) for text in options.settings)
    except ValueError as error:
        parser.error(str(error))
    return options


def setting(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a number where it looks like one. Raises ValueError."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def machine() -> dict[str, Any]:
    """What the figures depend on and no bench chooses."""
    try:
        words = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, timeout=10)
        qemu = words.stdout.partition("version ")[2].split(" ")[0].strip()
    except (OSError, subprocess.TimeoutExpired):
        qemu = "none"
    return {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "qemu": qemu,
        "python": platform.python_version(),
    }


def complete(result: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """A group's result with its goal and the machine, in the order of the schema."""
    goal, better = GOALS.get(result["name"], (result.get("goal"), result.get("better", "lower")))
    conditions = {**about, **result.get("conditions", {})}
    fields = {"name": result["name"], "value": result["value"], "unit": result["unit"]}
    return {**fields, "goal": goal, "better": better, "conditions": conditions}


def verdict(result: dict[str, Any]) -> str:
    value, goal = result["value"], result["goal"]
    if goal is None or value is None:
        return ""
    met = value <= goal if result["better"] == "lower" else value >= goal
    return "met" if met else "MISSED"


def line(result: dict[str, Any]) -> str:
    value = "-" if result["value"] is None else f"{result['value']:g}"
    sign = "<=" if result["better"] == "lower" else ">="
    goal = "" if result["goal"] is None else f"goal {sign} {result['goal']:g}"
    return f"{result['name']:32} {value:>10} {result['unit']:12} {goal:14} {verdict(result)}".rstrip()


def run_group(group: str, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of one group. Raises whatever keeps it from being measured."""
    module = importlib.import_module(f"tests.bench.{group}")
    results: list[dict[str, Any]] = module.run(**settings)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    results: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    about = machine()
    for group in options.groups:
        begun, load = time.monotonic(), os.getloadavg()[0]
        try:
            measured = run_group(group, options.settings)
        except (HoldfastError, OSError, ImportError, RuntimeError, subprocess.SubprocessError) as error:
            failed[group] = str(error)
            print(f"{group}: not measured: {error}", file=sys.stderr, flush=True)
            continue
        seconds = round(time.monotonic() - begun)
        for result in measured:
            results.append(complete(result, {**about, "load_1min_before": round(load, 2), "bench_s": seconds}))
            print(line(results[-1]), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    partial = options.out.with_name(options.out.name + ".partial")
    partial.write_text(json.dumps({"schema": SCHEMA, "results": results}, indent=1) + "\n")
    partial.replace(options.out)
    print(f"written: {options.out}")
    for group, cause in failed.items():
        print(f"{group}: not measured: {cause}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
