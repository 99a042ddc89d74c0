# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operator's commands show of a real pair: both hosts, live, in a terminal and as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import control
from appliance.exits import Exit
from appliance.lab import blueprint
from appliance.lab.blueprint import VM
from appliance.registry import CONTROL_VARIABLE
from tests.operator.terminal import Terminal
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def holdfast(pair: Pair, host: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`holdfast WORDS` on that host."""
    environment = {**os.environ, CONTROL_VARIABLE: str(blueprint.control_path(pair.lab.name, host))}
    return subprocess.run([sys.executable, "-m", "appliance.cli", *words], env=environment, capture_output=True,
                          text=True, timeout=90)


def told(pair: Pair, host: str, *words: str) -> dict[str, Any]:
    done = holdfast(pair, host, *words, "-j")
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_each_host_shows_both(pair: Pair) -> None:
    primary, backup = pair.protected()
    for host, own, there in ((primary, "protected", "standby"), (backup, "standby", "protected")):
        vm = told(pair, host, "status")["vms"][VM]
        assert (vm["phase"], vm["peer"]["phase"]) == (own, there)


def test_events_tell_a_move_with_its_order_on_both_hosts(pair: Pair) -> None:
    primary, backup = pair.protected()
    heard: dict[str, list[dict[str, Any]]] = {primary: [], backup: []}

    def listen(host: str) -> None:
        for event in control.stream(blueprint.control_path(pair.lab.name, host), "events"):
            heard[host].append(event)
            moved = event["event"] == ("waiting" if host == primary else "protected")
            if moved and any(one["event"] == "end-of-state" for one in heard[host]):
                return

    listeners = [threading.Thread(target=listen, args=(host,), daemon=True) for host in heard]
    for listener in listeners:
        listener.start()
    until("both listen", lambda: all(any(one["event"] == "end-of-state" for one in heard[host]) for host in heard))
    assert told(pair, primary, "switchover", VM)["to"] == backup
    for listener in listeners:
        listener.join(60)
        assert not listener.is_alive()
    names = {host: [event["event"] for event in heard[host]] for host in heard}
    assert names[primary].index("order") < names[primary].index("handover") < names[primary].index("handed")
    order = next(event for event in heard[primary] if event["event"] == "order")
    assert (order["verb"], order["args"], order["user_id"]) == ("switchover", {"vm": VM}, 0)
    assert "order" not in names[backup]
    assert any(event["event"] == "peer-phase" and event["phase"] == "handed" for event in heard[backup])
    assert {"taking-over", "solo", "syncing", "protected"} <= set(names[backup])
    pair.protected()


def test_wait_and_protect_return_when_it_is_so(pair: Pair) -> None:
    primary, backup = pair.protected()
    assert told(pair, primary, "wait", "primary")["vms"][VM]["role"] == "primary"
    assert holdfast(pair, primary, "wait", "gone", "--timeout", "0.2s").returncode == Exit.TIMEOUT
    assert holdfast(pair, primary, "unprotect", VM).returncode == Exit.UNSAFE
    assert told(pair, backup, "unprotect", VM, "--yes")["paused"] is True
    until("it runs alone", lambda: pair.vm(primary)["phase"] == "solo")
    done = holdfast(pair, primary, "status")
    assert done.returncode == Exit.DEGRADED and "unprotected   by the operator" in done.stdout
    assert told(pair, backup, "protect", VM)["paused"] is False
    assert pair.vm(backup)["phase"] == "standby", "protect returned when it was protected"
    assert pair.protected() == (primary, backup)


def test_top_measures(pair: Pair) -> None:
    primary, _ = pair.protected()
    found = told(pair, primary, "top", "-n", "1")
    vm, links = found["vms"][VM], {link["name"]: link for link in found["links"]}
    assert vm["phase"] == "protected" and vm["epochs_per_s"] > 0 and vm["pause_ms"] > 0 and vm["hold_ms"] > 0
    assert links["link0"]["sent_bytes_per_s"] > 0 and links["link1"]["received_bytes_per_s"] > 0


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    if not shutil.which("tmux"):
        pytest.skip("needs tmux")
    yield tmp_path


def test_the_shell_on_both_hosts(pair: Pair, home: Path) -> None:
    primary, backup = pair.protected()
    shells = {host: Terminal(home, ["shell", "--control", str(blueprint.control_path(pair.lab.name, host))])
              for host in (primary, backup)}
    try:
        shells[primary].shows(f"{primary} primary protected>")
        shells[backup].shows(f"{backup} backup standby>")
        shells[backup].shows(f" {VM}  {backup} backup standby  {primary} primary protected  term")
        shells[backup].enter(f"switchover {VM}")
        shells[backup].shows(f"{VM}: moved from {primary} to {backup} in", 60)
        shells[backup].shows(f"{backup} primary protected>", 60)
        shells[primary].shows(f"{primary} backup standby>", 60)
        shells[primary].shows(f" {VM}  {primary} backup standby  {backup} primary protected  term", 60)
    finally:
        for shell in shells.values():
            shell.close()
    assert pair.protected() == (backup, primary)


def test_hostile_clients_cost_no_protection(pair: Pair) -> None:
    """Floods of questions, connections, nonsense and streams that nobody reads, on both hosts at once."""
    primary, backup = pair.protected()
    before = pair.vm(primary)
    stop, done = threading.Event(), [0]

    def hostile(path: Path, words: bytes, *, read: bool) -> None:
        while not stop.is_set():
            with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
                client.settimeout(0.5)
                client.connect(str(path))
                client.sendall(words)
                done[0] += 1
                if read:
                    client.recv(1 << 16)
                elif b"events" in words:
                    stop.wait(1.0)

    asks = b'{"verb": "status"}\n' * 200
    kinds = [(asks, True), (asks, False), (b"\xff" * 300_000, False), (b"", False), (b"[" * 60_000 + b"\n", True),
             (b'{"verb": "events"}\n', False)]
    clients = [threading.Thread(target=hostile, args=(blueprint.control_path(pair.lab.name, host), words),
                                kwargs={"read": read}, daemon=True)
               for host in (primary, backup) for words, read in kinds]
    for client in clients:
        client.start()
    try:
        for _ in range(8):
            pair.client.goes_on()
            assert told(pair, primary, "status")["vms"][VM]["term"] == before["term"]
    finally:
        stop.set()
        for client in clients:
            client.join(10)
    assert done[0] > 50, "they were hostile indeed"
    after = pair.vm(primary)
    assert (after["phase"], after["term"]) == ("protected", before["term"])
    assert after["checkpoints"] > before["checkpoints"]
    pair.sound(primary)
