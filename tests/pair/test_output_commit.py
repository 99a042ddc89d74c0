# SPDX-License-Identifier: GPL-2.0-or-later
"""Output commit, on the wire: as long as no epoch can commit nothing of the VM passes, whatever the protocol."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from appliance import control
from appliance.lab import blueprint
from appliance.lab.blueprint import VM, Options
from appliance.lab.wire import Frame
from tests.pair.pair import Pair, until
from tests.pair.probe import ANSWERS, Probe, answers

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

TIMEOUT = 3.0  # seconds of silence that the pair bears: time to look
QUIET = 1.0
SLACK = 0.2  # seconds after an acknowledgement in which what it releases may still be on its way


@pytest.fixture(scope="module")
def patient(fresh_name: Callable[[], str]) -> Iterator[Pair]:
    """A pair that takes a while to give the peer up, and goes on taking checkpoints meanwhile."""
    pair = Pair.up(Options(name=fresh_name(), timeout=TIMEOUT, in_flight=64))
    yield pair
    pair.down()


@pytest.fixture
def probe(patient: Pair) -> Iterator[Probe]:
    made = Probe(patient.lab)
    patient.protected()
    made.ask()  # the VM learns the addresses
    _until_answered(patient)
    yield made
    made.close()


def test_nothing_passes_while_the_backup_stands_still(patient: Pair, probe: Probe) -> None:
    primary, backup = patient.protected()
    patient.lab.fault("service-pause", backup)
    stopped, epoch = time.time(), patient.vm(primary)["epoch"]
    probe.ask()
    until("some time passes", lambda: time.time() > stopped + QUIET)
    vm, last = patient.vm(primary), _last_commit(patient, primary)
    thawed = time.time()
    patient.heal(backup)
    frames = _until_answered(patient)

    assert vm["epoch"] > epoch + 2 and last < stopped + SLACK, "epochs end, none is committed"
    assert vm["gate"]["held_frames"] >= len(ANSWERS)
    silent = [frame for frame in frames if frame.at < thawed]
    assert not answers(silent), "an answer came out although nobody acknowledged it"
    leaked = [frame for frame in silent if frame.at > last + SLACK]
    assert not leaked, leaked[:5]
    assert patient.protected() == (primary, backup)
    patient.client.goes_on()
    patient.sound()


def test_the_primary_speaks_alone_only_when_it_may(patient: Pair, probe: Probe) -> None:
    """Silence of the backup ends in a grant: not a frame before it, and all that was held after it."""
    primary, backup = patient.protected()
    patient.lab.fault("service-pause", backup)
    probe.ask()
    until("the primary goes on alone", lambda: patient.vm(primary).get("phase") == "solo")
    # As the status has it, in unix seconds like the frames.
    alone = next(event["at"] for event in reversed(patient.vm(primary)["events"]) if event["event"] == "solo")
    last = _last_commit(patient, primary)
    assert alone - last > TIMEOUT / 2
    early = [frame for frame in _until_answered(patient) if frame.at < alone]
    assert not answers(early), "an answer came out before the grant"
    assert not [frame for frame in early if frame.at > last + SLACK]
    patient.heal(backup)
    assert patient.protected() == (primary, backup)
    patient.sound(primary)


def _until_answered(pair: Pair) -> list[Frame]:
    """Wait until there is an answer to every question; every frame since the last look."""
    frames: list[Frame] = []

    def answered() -> bool:
        frames.extend(pair.wire.take())
        return answers(frames) >= ANSWERS

    until("the VM answers every question", answered)
    return frames


def _last_commit(pair: Pair, host: str) -> float:
    """When `host` last heard that an epoch is committed, in unix seconds."""
    reply = control.call(blueprint.control_path(pair.lab.name, host), "epochs", timeout=5.0)
    return max(record["acked_at"] or 0.0 for record in reply["vms"][VM])
