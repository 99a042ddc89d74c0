# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts that lose sight of each other: the witness decides, and nobody speaks without its word."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable

import pytest

from appliance.arbiter.arbiter import make
from appliance.arbiter.settings import Arbiter as Settings
from appliance.lab import topology
from appliance.lab.blueprint import Options
from appliance.lab.third import PLACE
from appliance.lab.topology import HOSTS
from appliance.lab.wire import speakers
from tests.pair.pair import Pair, other, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def alone(pair: Pair) -> tuple[str, str]:
    """The host that goes on alone, and the other one; either may win the term."""
    until("one goes on alone", lambda: "solo" in [pair.vm(host).get("phase") for host in HOSTS])
    found = [host for host in HOSTS if pair.vm(host).get("phase") == "solo"]
    assert len(found) == 1
    return found[0], other(found[0])


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
    winner, silent = alone(pair)
    pair.client.goes_on()
    until(f"{silent} says why it is silent", lambda: f"granted to {winner}" in reason(pair, silent))
    assert record(pair)["record"] == {"term": term + 1, "host": winner}
    assert speakers(pair.wire.take()) in ([primary], [primary, winner])
    pair.heal(backup)
    assert pair.protected() == (winner, silent)
    pair.sound(winner)


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
    winner, silent = alone(pair)
    pair.lab.fault("witness-down", PLACE)
    until("the status tells", lambda: (pair.lab.host_status(winner) or {})["arbiter"]["reachable"] is False)
    pair.client.goes_on()
    pair.heal(PLACE)
    pair.heal(primary)
    assert pair.protected() == (winner, silent)
    pair.sound()


def test_a_grant_that_was_not_used_stands_in_nobodys_way(pair: Pair) -> None:
    """A host dies between being granted a term and using it: until it is back and says so, nobody else may speak
    under an older one; then anyone may have it."""
    primary, backup = pair.protected()
    pair.lab.fault("service-kill", backup)
    assert alone(pair) == (primary, backup)
    term = pair.term()
    granted(pair, backup, term + 1)
    until(f"{primary} is silent", lambda: f"term {term + 1} was granted to {backup}" in reason(pair, primary))
    assert pair.vm(primary)["phase"] == "asking"
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    until(f"{backup} gives it back", lambda: record(pair)["record"] == {"term": term + 1, "host": ""})
    pair.lab.fault("crash", backup)
    assert alone(pair) == (primary, backup)
    assert record(pair)["record"] == {"term": term + 1, "host": primary}
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def granted(pair: Pair, host: str, term: int) -> None:
    """Have the witness grant `term` to `host`, which does not hear of it."""
    keys = pair.lab.directory / PLACE / "keys" / "alpha-beta.key"
    settings = Settings(kind="witness", address="10.77.0.5", key_file=keys)

    async def ask() -> None:
        assert (await make(settings, host, other(host)).ask("web1", term)).granted

    with topology.inside(pair.lab.netns("client")):
        asyncio.run(ask())


@pytest.mark.skipif(shutil.which("etcd") is None, reason="etcd is not installed")
def test_etcd_decides(fresh_name: Callable[[], str]) -> None:
    pair = Pair.up(Options(name=fresh_name(), arbiter="etcd"))
    try:
        primary, backup = pair.protected()
        pair.lab.fault("both-links", backup)
        winner, silent = alone(pair)
        until(f"{silent} says why it is silent", lambda: f"granted to {winner}" in reason(pair, silent))
        pair.heal(backup)
        assert pair.protected() == (winner, silent)
        pair.lab.fault("crash", winner)
        pair.takes_over(silent)
        pair.heal(winner)
        assert pair.protected() == (silent, winner)
        pair.sound()
    finally:
        pair.down()


def test_nobody_decides(fresh_name: Callable[[], str]) -> None:
    """Without an arbiter and without the accepted risk, silence of the peer closes this host, and the other one."""
    pair = Pair.up(Options(name=fresh_name(), arbiter="none", risk=False))
    try:
        primary, backup = pair.protected()
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
