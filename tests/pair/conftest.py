# SPDX-License-Identifier: GPL-2.0-or-later
"""One lab that the faults of this folder hit one after another; a new one when a test left it broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from appliance.lab.blueprint import Options
from tests.lab.naming import given_out
from tests.pair.pair import Pair


@pytest.fixture(scope="package")
def fresh_name() -> Iterator[Callable[[], str]]:
    """Gives out names of labs; at the end takes down what goes by them and fails if anything is left then."""
    yield from given_out()


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
