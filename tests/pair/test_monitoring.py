# SPDX-License-Identifier: GPL-2.0-or-later
"""What monitoring reads of a pair that lives, dies and moves: figures that fit, codes that follow the VM."""

from __future__ import annotations

import http.client
import json
import os
from typing import Any

import pytest

from appliance import control
from appliance.lab import blueprint, topology
from tests.metrics.test_figures import samples
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]
HOST, PORT = blueprint.METRICS.split(":")


def get(pair: Pair, host: str, path: str) -> tuple[int, bytes]:
    """As something on that host gets it."""
    with topology.inside(pair.lab.netns(host)):
        connection = http.client.HTTPConnection(HOST, int(PORT), timeout=10)
        connection.connect()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


class Figures:
    """One look."""

    def __init__(self, pair: Pair, host: str) -> None:
        status, body = get(pair, host, "/metrics")
        assert status == 200
        self._found = samples(body.decode())

    def __call__(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels. Raises KeyError when there is none."""
        found = [value for at, value in self._found[f"holdfast_{name}"].items() if labels.items() <= dict(at).items()]
        if not found:
            raise KeyError((name, labels))
        return sum(found)


def primary_codes(pair: Pair) -> dict[str, int]:
    return {host: get(pair, host, "/primary?vm=web1")[0] for host in ("alpha", "beta")}


def test_figures_and_codes_follow_the_vm(pair: Pair) -> None:
    primary, backup = pair.protected()
    assert primary_codes(pair) == {primary: 200, backup: 503}
    assert get(pair, primary, "/primary?vm=other")[0] == 404
    for host, phase in ((primary, "protected"), (backup, "standby")):
        status, body = get(pair, host, "/healthz")
        assert status == 200 and json.loads(body) == {"host": host, "alive": True, "reason": "", "vms": {"web1": phase}}
    before, spare = Figures(pair, primary), Figures(pair, backup)
    pair.client.goes_on()
    until("a second look is another one", lambda: Figures(pair, primary)("epoch_total", outcome="taken")
          > before("epoch_total", outcome="taken"))
    pair.client.goes_on()
    status = control.call(blueprint.control_path(pair.lab.name, primary), "status", timeout=10.0)
    after = Figures(pair, primary)
    _fits(after, before, status["vms"]["web1"])
    assert spare("epoch_total", outcome="received") > 0 and spare("speaks") == 0
    assert spare("packets_fenced_total", cause="early") == 0

    takeovers = spare("moves_total", kind="takeover")
    pair.lab.fault("qemu-kill", primary)
    pair.takes_over(backup)
    until("the codes follow", lambda: primary_codes(pair) == {primary: 503, backup: 200})
    pair.client.goes_on()
    assert pair.protected() == (backup, primary)
    now = Figures(pair, backup)
    assert now("moves_total", kind="takeover") == takeovers + 1
    assert now("failover_seconds_count", kind="takeover") >= 1
    assert 0 < now("failover_seconds_sum", kind="takeover") < 20
    assert now("speaks") == 1 and now("term") == pair.term()
    pair.sound(primary, backup)


def _fits(after: Figures, before: Figures, status: dict[str, Any]) -> None:
    """What a protected VM with a busy client leaves in the figures."""
    for state in ("protected", "solo"):
        assert after("state", state=state) == (state == "protected")
    assert after("state") == after("role") == after("role", role="primary") == after("speaks") == 1
    epochs = {outcome: after("epoch_total", outcome=outcome) for outcome in ("taken", "committed", "released")}
    assert epochs["taken"] >= epochs["committed"] >= epochs["released"] > before("epoch_total", outcome="released")
    assert after("pause_seconds_count") == epochs["taken"] and after("commit_seconds_count") == epochs["committed"]
    assert 0 < after("hold_seconds_count") <= epochs["released"]
    assert 0 < after("hold_seconds_sum") / after("hold_seconds_count") < 5
    released = after("packets_released_total", cause="commit")
    assert released > before("packets_released_total", cause="commit")
    assert after("packets_held_total", cause="epoch") >= released - after("held_frames") - 50
    assert after("packets_fenced_total", cause="early") == after("packets_fenced_total", cause="unstamped") == 0
    assert after("held_limit_bytes") == status["gate"]["limit_bytes"]
    assert after("dirty_pages_total") > before("dirty_pages_total")
    assert after("checkpoint_bytes_total") > before("checkpoint_bytes_total")
    assert after("peer_up") == 1 and after("link_up") == 2 and after("link_active") == 1
    assert after("link_sent_bytes_total") > after("checkpoint_bytes_total") - before("checkpoint_bytes_total")
    assert 0 < after("link_rtt_seconds", link="link0") < 10
    assert after("arbiter_reachable", kind="witness") == 1 and after("rules_loaded") == 1
    assert after("host_state", host="alpha") == after("host_state", host="beta") == 1
    assert after("log_lines_total", level="info") > 0 and after("log_lost_lines_total") == 0
