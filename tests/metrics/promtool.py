# SPDX-License-Identifier: GPL-2.0-or-later
"""Prometheus' own checker, taken out of Debian's package: installing that would start a daemon.

    python3 -m tests.metrics.promtool --out build/promtool --cache build/debs
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from images.packages import BuildError, fetch, unpack

HERE = Path(__file__).resolve().parents[2] / "build" / "promtool" / "promtool"


def program() -> str | None:
    """Where it is; None when `make promtool` was not run and none is installed."""
    return str(HERE) if HERE.is_file() else shutil.which("promtool")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    try:
        archives = fetch(args.cache, ["prometheus"])
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.out) as root:
            unpack(archives.values(), Path(root))
            (Path(root) / "usr/bin/promtool").replace(args.out / "promtool")
    except BuildError as error:
        print(f"promtool: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
