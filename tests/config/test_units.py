# SPDX-License-Identifier: GPL-2.0-or-later
"""Quantities are read with their units and written so that they are read back the same."""

import pytest

from appliance import units


@pytest.mark.parametrize(
    ("text", "seconds"), [("25ms", 0.025), ("1.5s", 1.5), (" 10 us ", 1e-5), ("2min", 120.0), ("1h", 3600.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("128MiB", 128 << 20), ("1.5GiB", 3 << 29), ("7B", 7), ("4 KiB", 4096)])
def test_sizes(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "ms", "1", "1e3s", "0x10s", "٣s", "1s2ms", "nans", "1 s s", "9" * 400 + "s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        units.parse_duration(text)
    assert len(caught.value.args) == 2


@pytest.mark.parametrize("text", ["0.5B", "128MB", "128mib", "1Gi", "-1B"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        units.parse_size(text)


@pytest.mark.parametrize("seconds", [0.025, 1.0, 0.000001, 90.0, 0.3])
def test_durations_survive_a_round_trip(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == pytest.approx(seconds)


@pytest.mark.parametrize("size", [0, 1, 1023, 1 << 20, 3 << 30, (1 << 20) + 1])
def test_sizes_survive_a_round_trip(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size
