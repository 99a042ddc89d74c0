# SPDX-License-Identifier: GPL-2.0-or-later
"""One lab that the faults of this folder hit one after another; a new one when a test left it broken."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.lab.blueprint import Options
from appliance.lab.lab import down
from tests.lab.conftest import traces
from tests.pair.pair import Pair

_numbers = itertools.count(1)


@pytest.fixture(scope="package")
def fresh_name() -> Iterator[Callable[[], str]]:
    """Gives out names of labs; at the end takes down what goes by them and fails if anything is left then."""
    Path("/run/netns").mkdir(exist_ok=True)
    given: list[str] = []

    def name() -> str:
        given.append(f"p{os.getpid()}-{next(_numbers)}")
        return given[-1]

    yield name
    for used in given:
        down(used)
    left = [trace for used in given for trace in traces(used)]
    assert not left, left


class Shared:
    """The pair that tests share."""

    def __init__(self, fresh_name: Callable[[], str]) -> None:
        self._fresh_name, self._pair = fresh_name, None  # type: Callable[[], str], Pair | None

    def healthy(self) -> Pair:
        """A protected pair whose client saw nothing amiss."""
        if self._pair is not None and not (self._pair.is_protected() and not self._pair.client.problems()):
            self.close()
        if self._pair is None:
            self._pair = Pair.up(Options(name=self._fresh_name()))
        self._pair.wire.take()
        self._pair.client.goes_on()  # so that the primary has spoken
        return self._pair

    def close(self) -> None:
        if self._pair is not None:
            self._pair.down()
        self._pair = None


@pytest.fixture(scope="package")
def shared(fresh_name: Callable[[], str]) -> Iterator[Shared]:
    stage = Shared(fresh_name)
    yield stage
    stage.close()


@pytest.fixture
def pair(shared: Shared) -> Pair:
    """A protected pair with a busy client."""
    return shared.healthy()
