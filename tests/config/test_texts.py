# SPDX-License-Identifier: GPL-2.0-or-later
"""Every setting says what it is for: the manual page has nothing else to go by."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from appliance import config
from appliance.settings import Section, marks


def settings(section: type[Section], at: str = "") -> Iterator[tuple[str, object]]:
    """Every key that can be written, with its type."""
    for item in msgspec.structs.fields(section):
        name = f"{at}{item.name}"
        kinds = [part for part in (item.type, *getattr(item.type, "__args__", ())) if isinstance(part, type)]
        inner = next((kind for kind in kinds if issubclass(kind, Section)), None)
        if inner is not None:
            yield from settings(inner, f"{name}.")
        else:
            yield name, item.type


SETTINGS = dict(settings(config.Config))


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"directory"}))
def test_it_says_what_it_is_for(name: str) -> None:
    said = [mark.description for mark in marks(SETTINGS[name]) if mark.description]
    assert len(said) == 1 and not said[0].endswith("."), said
