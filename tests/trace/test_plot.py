# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of a capture: what is in it, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from appliance.cli import main
from appliance.exits import Exit
from appliance.trace import notes
from appliance.trace.capture import Capture
from appliance.trace.event import Event
from appliance.trace.plot import draw
from tests.trace.events import HOST, OFFSET, VM, begin
from tests.trace.test_audit import backup, primary, story
from tests.trace.test_files import written


def both() -> Capture:
    gate = story()
    told: list[Event] = [
        notes.Taken(at_ns=OFFSET + 90, vm=VM, host=HOST, term=1, epoch=epoch, stopped_ns=OFFSET + 40 + 30 * epoch,
                    stop_ns=1, save_ns=2, resume_ns=3, pages=4, bytes=5, frames=6) for epoch in (1, 2, 3)]
    told.append(notes.Happened(at_ns=OFFSET + 200, vm=VM, host="beta", event="takeover-begin", fields={}))
    events = sorted([*primary(gate), *backup(gate), *told], key=lambda event: event.at_ns)
    return Capture(events, [begin(), begin(host="beta")])


@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_what_is_in_it(tmp_path: Path, kind: str, magic: bytes) -> None:
    out = tmp_path / f"timeline.{kind}"
    document = draw(both(), out)
    assert out.read_bytes().startswith(magic) and [path.name for path in tmp_path.iterdir()] == [out.name]
    assert document["hosts"] == {
        HOST: {"frames": 20, "drawn": 20, "held": 10, "epochs": 3, "marks": 0},
        "beta": {"frames": 0, "drawn": 0, "held": 0, "epochs": 0, "marks": 2},
    }
    if kind == "svg":
        assert "takeover-begin" in out.read_text() or "<use" in out.read_text()


def test_a_part_of_it(tmp_path: Path) -> None:
    capture = both()
    first = capture.events[0].at_ns
    document = draw(capture, tmp_path / "part.png", 0.0, (capture.events[5].at_ns - first) / 1e9)
    assert document["hosts"][HOST]["frames"] < 20


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from appliance.trace import pcapng

    (tmp_path / "a.pcapng").write_bytes(written(pcapng.Writer))
    out = tmp_path / "t.png"
    assert main(["trace", "plot", str(tmp_path / "a.pcapng"), "-o", str(out), "-j"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["hosts"][HOST]["frames"] == 4 and out.exists()
    assert main(["trace", "plot", str(tmp_path / "a.pcapng"), "-o", str(tmp_path / "x.doc")]) == Exit.DEGRADED
    assert ".png, .svg or .pdf" in capsys.readouterr().err
    assert main(["trace", "plot", str(tmp_path / "a.pcapng"), "-o", str(out), "--from", "99"]) == Exit.DEGRADED
    assert "nothing happened" in capsys.readouterr().err
    assert main(["trace", "plot"]) == Exit.USAGE


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.errors import Unavailable

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(Unavailable, match="needs matplotlib"):
        draw(both(), tmp_path / "t.png")
