# SPDX-License-Identifier: GPL-2.0-or-later
"""A host that answers, and terminals."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.operator.pretender import Pretender
from tests.operator.terminal import Terminal

NewTerminal = Callable[..., Terminal]


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path: a UNIX socket's name has room for 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="hf-operator-") as directory:
        yield Path(directory)


@pytest.fixture
def host(home: Path) -> Iterator[Pretender]:
    pretender = Pretender(home / "control.sock")
    yield pretender
    pretender.close()


@pytest.fixture
def terminal(home: Path) -> Iterator[NewTerminal]:
    """Makes a terminal with `holdfast WORDS` in it."""
    if not shutil.which("tmux"):
        pytest.skip("needs tmux")
    made: list[Terminal] = []

    def make(*words: str, **options: object) -> Terminal:
        made.append(Terminal(home, list(words), **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        one.close()
