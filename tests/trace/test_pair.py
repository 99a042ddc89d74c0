# SPDX-License-Identifier: GPL-2.0-or-later
"""Both hosts of a real pair traced through a takeover: what the captures say, and that the audit can be refuted."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.cli import main
from appliance.exits import Exit
from appliance.lab import blueprint
from appliance.lab.blueprint import VM, Options
from appliance.trace import capture, notes
from appliance.trace.audit import PROVEN, REFUTED, audit
from appliance.trace.capture import Capture
from appliance.trace.event import OUT, Frame, Point
from tests.lab.naming import given_out
from tests.pair.pair import Pair, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

ROOT = Path(__file__).resolve().parents[2]
ENOUGH = 30  # frames


@dataclass
class Story:
    """A pair, and what was captured when its primary died with an epoch that was committed and not released."""

    pair: Pair
    first: str
    second: str
    files: dict[str, Path]
    codes: dict[str, int]

    @property
    def both(self) -> Capture:
        return capture.load(list(self.files.values()))


@contextlib.contextmanager
def tracing(pair: Pair, host: str, out: Path) -> Iterator[subprocess.Popen[str]]:
    """`holdfast trace` on a host, on once this is entered; whoever enters ends it."""
    ready, told = os.pipe()
    command = [sys.executable, "-m", "appliance.cli", "trace", "-w", str(out), "--point", "all", "--ready-fd",
               str(told), "--control", str(blueprint.control_path(pair.lab.name, host))]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[told], stderr=subprocess.PIPE, text=True)
    os.close(told)
    try:
        assert os.read(ready, 6) == b"ready\n", process.communicate()[1]
        yield process
    finally:
        os.close(ready)
        process.kill()
        process.communicate()


def written(path: Path, count: Callable[[Capture], int]) -> bool:
    """Is there so much in a capture that is being written?"""
    with contextlib.suppress(Exception):
        return count(capture.load([path])) >= ENOUGH
    return False


def commits(found: Capture) -> set[int]:
    return {note.epoch for note in found.events if isinstance(note, notes.Committed)}


def frames(found: Capture, *points: Point) -> list[Frame]:
    return [event for event in found.events if isinstance(event, Frame) and event.point in points]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    names = given_out()
    pair = Pair.up(Options(name=next(names)()))
    try:
        yield _told(pair, tmp_path_factory.mktemp("captures"))
    finally:
        pair.down()
        next(names, None)


def _told(pair: Pair, place: Path) -> Story:
    first, second = pair.protected()
    files = {host: place / f"{host}.pcapng" for host in (first, second)}
    with tracing(pair, first, files[first]) as there, tracing(pair, second, files[second]) as here:
        until("epochs are whole there", lambda: written(files[second], lambda found: len(commits(found))))
        until("frames are released", lambda: written(files[first], lambda found: len(frames(found, Point.RELEASED))))
        pair.arm(first, "epoch.acked:kill")
        pair.dead(first)
        pair.takes_over(second)
        pair.client.goes_on()
        until("frames leave the other host", lambda: written(files[second], lambda found: len(frames(found, *OUT))))
        here.send_signal(signal.SIGTERM)
        codes = {first: there.wait(30), second: here.wait(30)}
    return Story(pair, first, second, files, codes)


def test_it_ends_with_the_service_or_when_it_is_told_to(story: Story) -> None:
    assert story.codes == {story.first: Exit.UNREACHABLE, story.second: Exit.OK}
    ends = {end.host: end for end in story.both.ends}
    assert ends[story.second].cause == "interrupted" and "ended" in ends[story.first].cause
    assert story.both.whole and story.both.lost == 0


def test_every_released_frame_was_held_and_waited(story: Story) -> None:
    found = capture.load([story.files[story.first]])
    out = frames(found, Point.RELEASED)
    held = {frame.number: frame for frame in frames(found, Point.HELD)}
    seen = [frame for frame in out if frame.number in held]
    assert len(seen) >= ENOUGH - 5 and {frame.cause for frame in seen} == {"ack"}
    for frame in seen:
        before = held[frame.number]
        assert (before.name, before.packet_id, before.snap) == (frame.name, frame.packet_id, frame.snap)
        assert frame.hold_ns is not None and abs(frame.at_ns - before.at_ns - frame.hold_ns) < 1000
        assert frame.epoch >= 1 and frame.seq >= 1 and frame.committed is not None and frame.number <= frame.committed
        waits = frame.waits
        assert waits is not None and waits.epoch_ns > 0 and waits.transfer_ns > 0 and waits.ack_ns > 0
    by_epoch: dict[int, list[int]] = {}
    for frame in frames(found, Point.HELD):
        by_epoch.setdefault(frame.epoch, []).append(frame.seq)
    assert all(places == list(range(places[0], places[0] + len(places))) for places in by_epoch.values())


def test_what_was_committed_and_not_released_is_replayed(story: Story) -> None:
    """The other host sends it again: the same frames, which nobody had seen."""
    first, second = (capture.load([story.files[host]]) for host in (story.first, story.second))
    replayed = frames(second, Point.REPLAYED)
    assert replayed
    acked = max(commits(second))
    waiting = [frame.snap for frame in frames(first, Point.HELD) if frame.epoch == acked]
    assert waiting and {frame.snap for frame in replayed} >= set(waiting)
    assert frames(second, Point.ANNOUNCED) and frames(second, Point.RECEIVED)


def test_the_takeover_is_in_the_capture(story: Story) -> None:
    found = capture.load([story.files[story.second]])
    events = [note.event for note in found.events if isinstance(note, notes.Happened)]
    assert [event for event in events if event in ("takeover-begin", "takeover-done", "gate-open")] == [
        "takeover-begin", "takeover-done", "gate-open"]


def test_the_audit_proves_it(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "audit", *map(str, story.files.values())]) == Exit.OK
    said = capsys.readouterr().out
    assert said.startswith(f"{PROVEN}: ") and "traced on alpha and beta; 0 must not have" in said


def changed(story: Story, change: Callable[[Any], Any]) -> dict[str, Any]:
    """The verdict on the same captures after `change` of each event; None takes it out."""
    found = story.both
    found.events = sorted(filter(None, map(change, found.events)), key=lambda event: event.at_ns)
    return audit(found)


def test_a_frame_that_leaves_too_early_refutes_it(story: Story) -> None:
    victim = next(frame for frame in frames(story.both, Point.RELEASED) if frame.waits and frame.waits.ack_ns > 1000)

    def change(event: Any) -> Any:
        if event != victim:
            return event
        assert victim.waits is not None
        return msgspec.structs.replace(event, at_ns=victim.at_ns - victim.waits.release_ns - victim.waits.ack_ns // 2)

    document = changed(story, change)
    assert document["verdict"] == REFUTED and [one["packet"] for one in document["offending"]] == [victim.name]
    assert "was not acknowledged" in document["offending"][0]["why"]


def test_a_backup_without_the_epoch_refutes_it(story: Story) -> None:
    both = story.both
    out = frames(both, Point.RELEASED)
    whole = commits(both)
    epoch = next(frame.epoch for frame in out if frame.cause == "ack" and {frame.epoch - 1, frame.epoch} <= whole)
    guilty = [frame.name for frame in out if frame.epoch == epoch and frame.host == story.first]

    def change(event: Any) -> Any:
        return None if isinstance(event, notes.Committed) and event.epoch == epoch else event

    document = changed(story, change)
    assert document["verdict"] == REFUTED
    assert sorted(one["packet"] for one in document["offending"]) == sorted(guilty)
    assert all(f"did not have all of epoch {epoch}" in one["why"] for one in document["offending"])


def test_a_host_that_speaks_on_refutes_it(story: Story) -> None:
    found = story.both
    late = msgspec.structs.replace(frames(found, Point.RELEASED)[0], at_ns=found.events[-1].at_ns + 1)
    found.events.append(late)
    document = audit(found)
    assert document["verdict"] == REFUTED and "two speakers" in document["offending"][-1]["why"]


def test_a_packet_is_explained(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    both = story.both
    whole = commits(both)
    packet = next(frame for frame in frames(both, Point.RELEASED) if frame.waits and frame.epoch in whole)
    assert main(["trace", "explain", packet.name, "-r", ",".join(map(str, story.files.values()))]) == Exit.OK
    said = capsys.readouterr().out
    for step in ("held", "epoch ends", "VM runs on", "transferred", "whole there", "acknowledged", "released"):
        assert re.search(rf" (alpha|beta) +{step} ", said), (step, said)
    assert main(["trace", "explain", "999999.1", "-r", str(story.files[story.first])]) == Exit.DEGRADED


def test_epochs_out_of_a_capture(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "epochs", VM, "-c", "5", "-j", "-r", str(story.files[story.first])]) == Exit.OK
    found = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 5 and all(one["committed"] for one in found)
    for one in found[1:]:
        assert one["pause_ns"] == one["stop_ns"] + one["save_ns"] + one["resume_ns"] > 0
        assert one["pages"] >= 0 and one["bytes"] > 0 and one["transfer_ns"] > 0 and one["ack_ns"] > 0
    assert all(later["length_ns"] >= before["pause_ns"] for before, later in zip(found[1:], found[2:], strict=False))


@pytest.mark.skipif(shutil.which("tshark") is None, reason="needs tshark")
def test_tshark_counts_the_same(story: Story) -> None:
    path = str(story.files[story.first])
    said = subprocess.run(["tshark", "-nr", path, "-Y", 'frame.interface_name == "web1/released"', "-T", "fields", "-e",
                           "frame.packet_id"], capture_output=True, text=True, timeout=60, check=True)
    out = [frame.packet_id for frame in frames(capture.load([Path(path)]), Point.RELEASED)]
    assert [int(line) for line in said.stdout.split()] == out
