# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of CONTRIBUTING.md that a machine can check, and that no linter does."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ("appliance", "ebpf", "vmlink", "rules")
SPDX = "SPDX-License-Identifier: GPL-2.0-or-later"
SOURCES = {".py", ".c", ".h", ".nft", ".sh"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
MAX_LINES = 400


def sources() -> list[Path]:
    """Every source file that is, or is about to be, under version control."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )
    if listing.returncode:
        pytest.skip("not a git clone")
    paths = [ROOT / name for name in listing.stdout.splitlines()]
    return [path for path in paths if path.is_file() and (path.suffix in SOURCES or path.name == "Makefile")]


def code() -> list[Path]:
    return [path for path in sources() if path.suffix == ".py" and path.relative_to(ROOT).parts[0] in CODE]


def shown(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_every_source_file_names_its_licence_first() -> None:
    texts = {path: path.read_text() for path in sources()}
    without = [path for path, text in texts.items() if text and SPDX not in "".join(text.splitlines()[:2])]
    assert not shown(without)


def test_a_module_is_short_enough_to_read() -> None:
    assert not [
        f"{path.relative_to(ROOT)}: {lines}"
        for path in code() if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]


def test_a_module_says_what_it_is_about() -> None:
    texts = {path: path.read_text() for path in code()}
    assert not shown([path for path, text in texts.items() if text and not ast.get_docstring(ast.parse(text))])


def test_modules_are_named_after_something() -> None:
    assert not shown([path for path in code() if path.stem in FORBIDDEN_NAMES])
