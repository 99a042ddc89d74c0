# SPDX-License-Identifier: GPL-2.0-or-later
"""A part of a host fails and the host lives: the VM moves to the other one, planned, and its clients lose nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from appliance import control
from appliance.lab import blueprint
from appliance.lab.topology import HOSTS, inside
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


def condition(pair: Pair, host: str) -> dict[str, Any]:
    found: dict[str, Any] = (pair.lab.host_status(host) or {}).get("condition", {})
    return found


def whole(pair: Pair) -> None:
    """Wait until both hosts are."""
    parts = ("uplink", "disk", "rest")
    until("both hosts are whole", lambda: all(found.get(part) and not found["doubtful"] for part in parts
                                              for found in (condition(pair, host) for host in HOSTS)))


def health(pair: Pair, host: str) -> dict[str, Any]:
    found: dict[str, Any] = control.call(blueprint.control_path(pair.lab.name, host), "health")["hosts"]
    return found


def failed(readings: list[dict[str, Any]], component: str) -> list[str]:
    return [one["subject"] for one in readings if one["state"] == "failed" and one["component"] == component]


def asked(pair: Pair, host: str) -> str:
    """Whose answer tells that the QEMU of `host` is well."""
    found = [one for one in health(pair, host)[host]["readings"] if one["subject"].endswith(" monitor")]
    return str(found[0]["source"]) if found[0]["state"] == "ok" else ""


@contextlib.contextmanager
def read_only(pair: Pair, host: str) -> Iterator[None]:
    """The state directory of `host`, as the kernel leaves a file system on whose disk it met an error."""
    service = pair.lab.service(host)
    assert service is not None
    directory = str(blueprint.host_directory(pair.lab.name, host) / "state")

    def inside(*words: str) -> None:  # a service in a namespace has mounts of its own
        subprocess.run(["nsenter", "--target", str(service.pid), "--mount", *words], check=True, timeout=10)

    inside("mount", "--bind", directory, directory)
    try:
        inside("mount", "-o", "remount,bind,ro", directory)
        yield
    finally:
        if service.alive:
            inside("umount", directory)


def test_a_host_without_its_uplink_gives_its_vm_away(pair: Pair) -> None:
    for _ in HOSTS:  # and back again
        whole(pair)
        primary, backup = pair.protected()
        pair.client.goes_on()
        term = pair.term()
        pair.lab.fault("uplink-down", primary)
        pair.takes_over(backup)
        pair.client.goes_on()
        assert pair.protected() == (backup, primary), "in protection, though the cable is still dead"
        assert pair.term() == term + 1
        events = [event["event"] for event in pair.vm(primary)["events"]]
        assert "handed-over" in events, "planned, not a takeover"
        seen = health(pair, backup)[primary]
        assert seen["state"] == "failed" and failed(seen["readings"], "uplink") == ["br0 carrier"]
        pair.heal(primary)
        whole(pair)
        assert pair.protected() == (backup, primary), "a cable that comes back moves nothing"
        pair.sound(primary, backup)


def test_a_host_that_reaches_nobody_gives_its_vm_away(pair: Pair) -> None:
    """A switch whose port is dead keeps the carrier; only that no neighbour answers tells."""
    whole(pair)
    primary, backup = pair.protected()

    def plug(*words: str) -> None:
        with inside(pair.lab.netns("switch")):
            subprocess.run(["ip", "link", "set", primary, *words], check=True, timeout=10)

    plug("nomaster")
    try:
        pair.takes_over(backup)
        pair.client.goes_on()
        seen = health(pair, backup)[primary]
        assert failed(seen["readings"], "uplink") == ["br0 reach"]
    finally:
        plug("master", "switch")
    whole(pair)
    assert pair.protected() == (backup, primary)
    pair.sound(primary, backup)


def test_a_vm_stays_where_it_is_no_worse_off(pair: Pair) -> None:
    whole(pair)
    primary, backup = pair.protected()
    pair.lab.fault("uplink-down", backup)
    until("it is known", lambda: not condition(pair, backup)["uplink"])
    pair.client.goes_on()
    pair.lab.fault("uplink-down", primary)
    until("it is known", lambda: not condition(pair, primary)["uplink"])
    pair.heal(primary)
    pair.heal(backup)
    whole(pair)
    assert pair.protected() == (primary, backup)
    pair.sound(primary)


def test_a_host_whose_disk_fails_gives_its_vm_away(pair: Pair) -> None:
    whole(pair)
    primary, backup = pair.protected()
    with read_only(pair, primary):
        pair.takes_over(backup)
        pair.client.goes_on()
        assert not condition(pair, primary)["disk"]
    assert pair.protected() == (backup, primary)
    whole(pair)
    pair.sound(primary, backup)


def test_health_of_a_host_that_does_not_answer(pair: Pair) -> None:
    primary, backup = pair.protected()
    until("a VM that is checkpointed is not asked", lambda: asked(pair, primary) == "QMP cont")
    until("its replica is", lambda: asked(pair, backup) == "QMP query-status")
    pair.lab.fault("service-kill", backup)
    until("the loss is noticed", lambda: not health(pair, primary)[backup]["reachable"])
    seen = health(pair, primary)[backup]
    assert seen["state"] == "unknown" and "not reachable" in seen["reasons"][0]
    pair.heal(backup)
    assert pair.protected() == (primary, backup)
    until("it tells of itself again", lambda: health(pair, primary)[backup]["reachable"])
    pair.sound(primary)
