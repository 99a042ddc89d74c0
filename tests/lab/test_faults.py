# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults hit what they are meant for, at once, and nothing else; healing undoes them."""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from appliance.errors import Unavailable, UsageError
from appliance.lab import processes, topology
from appliance.lab.faults import Cables
from appliance.lab.lab import Lab
from appliance.lab.processes import Process
from tests.lab.conftest import alive_with, inside, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
Sleeper = Callable[..., Process]


def carrier(lab: Lab, place: str, device: str) -> str:
    return inside(lab, place, "cat", f"/sys/class/net/{device}/operstate").strip()


def test_a_cut_cable_is_dead_at_both_ends_until_it_is_restored(lab: Lab) -> None:
    with Cables(lab.name, "alpha") as cables:
        assert cables.down() == []
        cables.cut()
        assert cables.down() == list(topology.cables(lab.name))
        until(lambda: carrier(lab, "beta", "link0") != "up")
        until(lambda: carrier(lab, "switch", "alpha") != "up")
        assert carrier(lab, "switch", "beta") == "up"
        cables.restore()
        assert cables.down() == []
    until(lambda: carrier(lab, "beta", "link1") == "up")
    assert "1 received" in inside(lab, "alpha", "ping", "-c1", "-W2", "169.254.77.2")


@pytest.mark.parametrize(
    ("kind", "cut"),
    [("link-down", ["link0"]), ("link-down:0", ["link0"]), ("link-down:1", ["link1"]), ("uplink-down", ["up0"])],
)
def test_one_cable_is_cut(lab: Lab, kind: str, cut: list[str]) -> None:
    before = time.time(), time.monotonic()
    fault = lab.fault(kind, "beta")
    assert before[0] <= fault.unix <= time.time() and before[1] <= fault.monotonic <= time.monotonic()
    status = lab.status()["hosts"]
    assert (status["beta"]["cables_cut"], status["alpha"]["cables_cut"]) == (cut, [])


def test_a_crash_kills_all_of_one_host_and_nothing_else(lab: Lab, sleeper: Sleeper) -> None:
    victims = [sleeper(lab, "alpha"), sleeper(lab, "alpha")]
    spared = [sleeper(lab, "beta"), sleeper(lab, "client"), sleeper(lab, "alpha", stranger=True)]
    lab.fault("crash", "alpha")
    until(lambda: not any(victim.alive for victim in victims))
    assert all(process.alive for process in spared)
    assert lab.status()["hosts"]["alpha"]["cables_cut"] == list(topology.cables(lab.name))


def test_no_farewell_leaves_a_crashed_host(lab: Lab, sleeper: Sleeper) -> None:
    # The end of an open connection would be seen as FIN or RST at the other end of the cable.
    listener = "import socket,sys; s=socket.create_server(('169.254.77.2',9)); print('ready',flush=True); "
    listener += "c=s.accept()[0]; print('in',flush=True); print(repr(c.recv(1)),flush=True)"
    def popen(place: str, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            lab.command(place, words), env=lab.environment(place), stdout=subprocess.PIPE, text=True
        )

    server = popen("beta", sys.executable, "-c", listener)
    client = None
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        dial = "import socket,time; s=socket.create_connection(('169.254.77.2',9)); time.sleep(300)"
        client = popen("alpha", sys.executable, "-c", dial)
        assert server.stdout.readline() == "in\n"
        lab.fault("crash", "alpha")
        client.wait(5)
        heard, _, _ = select.select([server.stdout], [], [], 0.5)
        assert not heard, "the peer heard that the host died"
    finally:
        for child in (server, client):
            if child is not None:
                child.kill()
                child.wait(5)
                assert child.stdout is not None
                child.stdout.close()


def test_the_service_is_paused_continued_and_killed(lab: Lab, sleeper: Sleeper) -> None:
    service = sleeper(lab, "alpha")
    alive_with(lab, {"alpha": service})
    lab.fault("service-pause", "alpha")
    until(lambda: service.stopped)
    assert lab.status()["hosts"]["alpha"]["service_paused"] is True
    assert lab.heal("alpha") == ["service continued"]
    until(lambda: not service.stopped)
    assert lab.heal("alpha") == []
    lab.fault("service-kill", "alpha")
    until(lambda: not service.alive)
    with pytest.raises(Unavailable, match="no such process runs on alpha"):
        lab.fault("service-kill", "alpha")


def test_what_cannot_happen_is_refused(lab: Lab) -> None:
    for kind in ("meteor", "link-down:2", "crash:1", "link-down:x", ""):
        with pytest.raises(UsageError, match="unknown fault"):
            lab.fault(kind, "alpha")
    with pytest.raises(UsageError, match="no host 'client'"):
        lab.fault("crash", "client")
    with pytest.raises(Unavailable, match="qemu-kill: no such process"):
        lab.fault("qemu-kill", "alpha")


def test_a_recycled_pid_is_never_signalled(lab: Lab, sleeper: Sleeper) -> None:
    other = sleeper(lab, "alpha", stranger=True)
    recycled = Process(other.pid, other.started - 1)
    alive_with(lab, {"alpha": recycled})
    assert lab.service("alpha") is None
    with pytest.raises(Unavailable):
        lab.fault("service-kill", "alpha")
    processes.kill([recycled])
    lab.down()
    assert other.alive
