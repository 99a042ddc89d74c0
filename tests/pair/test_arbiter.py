# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts that lose sight of each other: the witness decides, and nobody speaks without its word."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable

import pytest

from appliance.lab.blueprint import Options
from appliance.lab.third import PLACE
from appliance.lab.wire import speakers
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def reason(pair: Pair, host: str) -> str:
    return str(pair.vm(host).get("reason"))


def record(pair: Pair) -> dict[str, object]:
    """What the witness has on disk."""
    file = pair.lab.directory / PLACE / "state" / "alpha-beta" / "web1.json"
    found: dict[str, object] = json.loads(file.read_text())
    return found


def test_both_links_are_cut(pair: Pair) -> None:
    """A partition of two that live: one goes on, the other is silent and says why."""
    primary, backup = pair.protected()
    term = pair.term()
    pair.lab.fault("both-links", backup)
    until("one goes on alone", lambda: pair.vm(primary).get("phase") == "solo")
    pair.client.goes_on()
    until(f"{backup} says why it is silent", lambda: f"granted to {primary}" in reason(pair, backup))
    assert record(pair)["record"] == {"term": term + 1, "host": primary}
    assert speakers(pair.wire.take()) == [primary]
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_no_witness_no_word(pair: Pair) -> None:
    """The primary dies while the witness is away: the other one stays closed, says so, and goes on with its return."""
    primary, backup = pair.protected()
    pair.lab.fault("witness-down", PLACE)
    pair.client.goes_on()
    pair.lab.fault("crash", primary)
    until(f"{backup} says why it is silent", lambda: "witness 10.77.0.5:7790 gives no answer" in reason(pair, backup))
    assert pair.vm(backup)["phase"] == "asking"
    assert backup not in speakers(pair.wire.take())
    pair.heal(PLACE)
    until(f"{backup} takes over", lambda: pair.vm(backup).get("phase") == "solo")
    pair.client.goes_on()
    pair.heal(primary)
    assert pair.protected() == (backup, primary)
    pair.sound()


def test_a_speaker_outlives_the_witness(pair: Pair) -> None:
    """Alone by its grant, a host goes on without the witness: nobody else can have been granted anything."""
    primary, backup = pair.protected()
    pair.lab.fault("both-links", primary)
    until("one goes on alone", lambda: pair.vm(primary).get("phase") == "solo")
    pair.lab.fault("witness-down", PLACE)
    until("the status tells", lambda: (pair.lab.host_status(primary) or {})["arbiter"]["reachable"] is False)
    pair.client.goes_on()
    pair.heal(PLACE)
    pair.heal(primary)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_a_grant_that_was_not_used_stands_in_nobodys_way(pair: Pair) -> None:
    """The backup is granted a term and finds its peer again before it has used it; later the primary needs one."""
    primary, backup = pair.protected()
    pair.lab.fault("service-pause", backup)
    until("the primary goes on alone", lambda: pair.vm(primary).get("phase") == "solo")
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    for _ in range(2):
        pair.lab.fault("both-links", backup)
        until("one goes on alone", lambda: pair.vm(primary).get("phase") == "solo")
        pair.heal(backup)
        assert pair.protected() == (primary, backup)
    pair.sound(primary)


@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
def test_etcd_decides(fresh_name: Callable[[], str]) -> None:
    pair = Pair.up(Options(name=fresh_name(), arbiter="etcd"))
    try:
        primary, backup = pair.protected()
        pair.lab.fault("both-links", backup)
        until("one goes on alone", lambda: pair.vm(primary).get("phase") == "solo")
        until(f"{backup} says why it is silent", lambda: f"granted to {primary}" in reason(pair, backup))
        pair.heal(backup)
        assert pair.protected() == (primary, backup)
        pair.lab.fault("crash", primary)
        pair.takes_over(backup)
        pair.heal(primary)
        assert pair.protected() == (backup, primary)
        pair.sound(primary, backup)
    finally:
        pair.down()


def test_nobody_decides(fresh_name: Callable[[], str]) -> None:
    """Without an arbiter and without the accepted risk, silence of the peer closes this host, and the other one."""
    pair = Pair.up(Options(name=fresh_name(), arbiter="none"))
    try:
        for host in ("alpha", "beta"):
            config = pair.lab.directory / host / "config" / "holdfast.toml"
            config.write_text(config.read_text().replace("accept_split_brain_risk = true", ""))
            pair.lab.fault("service-kill", host)
            pair.heal(host)
            pair.protected()
        primary, backup = pair.protected()
        pair.wire.take()
        pair.lab.fault("both-links", backup)
        for host in (primary, backup):
            until(f"{host} says why it is silent", lambda host=host: "no arbiter can tell" in reason(pair, host))  # type: ignore[misc]
        assert {pair.vm(host)["phase"] for host in (primary, backup)} == {"asking"}
        pair.heal(backup)
        pair.client.goes_on()
        assert pair.protected() == (primary, backup)
        pair.sound(primary)
    finally:
        pair.down()
