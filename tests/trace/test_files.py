# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures: what is written is read back; tshark and tcpdump read it; what is broken is refused, never more."""

from __future__ import annotations

import io
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import BadData
from appliance.trace import capture, lines, notes, pcapng
from appliance.trace.event import Event, Frame, Point, Waits
from tests.trace.events import HOST, OFFSET, VM, acked, begin, marked

ECHO = bytes.fromhex("525400aa0001525400aa00100800" "4500001c00010000401166cd0a4d090a0a4d0901" "1234003500080000")
Kind = type[pcapng.Writer] | type[lines.Writer]
END = notes.End(at_ns=OFFSET + 9000, host=HOST, frames=3, lost_frames=5, lost_notes=0, cause="the time is over")


def frame(at: int, point: Point, **more: object) -> Frame:
    fields = {"term": 3, "epoch": 1842, "seq": 7, "number": 91240, "size": len(ECHO), "segments": 1, "snap": ECHO}
    return Frame(at_ns=OFFSET + at, host=HOST, vm=VM, point=point, **{**fields, **more})  # type: ignore[arg-type]


def series() -> list[Event]:
    return [
        frame(1000, Point.HELD, held_frames=2, held_bytes=300),
        msgspec.structs.replace(marked(OFFSET + 2000, 1842, 91240, 3), host=HOST),
        msgspec.structs.replace(acked(OFFSET + 3000, 1842, 3), host=HOST),
        frame(4312_000, Point.RELEASED, cause="ack", hold_ns=4311_000, waits=Waits(4000_000, 200_000, 100_000, 11_000),
              under=3, committed=91240, lost_before=5),
        frame(4313_000, Point.DISCARDED, cause="the VM is gone", hold_ns=5000, lost_before=5),
        frame(4314_000, Point.RECEIVED, epoch=0, seq=0, number=0, size=65000, segments=45, snap=ECHO[:38],
              lost_before=5),
    ]


def written(kind: Kind) -> bytes:
    out = io.BytesIO()
    writer = pcapng.Writer(out) if kind is pcapng.Writer else lines.Writer(io.TextIOWrapper(out, write_through=True))
    writer.begin(begin())
    for event in series():
        writer.event(event)
    writer.end(END)
    return out.getvalue()


@pytest.fixture(params=[pcapng.Writer, lines.Writer], ids=["pcapng", "json"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "capture"
    path.write_bytes(written(request.param))
    return path


def test_what_is_written_is_read_back(file: Path) -> None:
    things = list(capture.things(file))
    for thing in things:
        if isinstance(thing, Frame):
            thing.summary = ""  # for programs that read lines; pcapng has the frame itself
    assert things == [begin(), *series(), END]
    found = capture.load([file])
    assert found.whole and found.lost == 5 and found.begins == [begin()]


def test_several_are_merged_by_time(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(written(pcapng.Writer))
    (tmp_path / "b").write_bytes(written(lines.Writer))
    found = capture.load([tmp_path / "a", tmp_path / "b"])
    assert len(found.events) == 12 and len(found.begins) == len(found.ends) == 2
    times = [event.at_ns for event in found.events]
    assert times == sorted(times)


def test_a_capture_without_an_end(tmp_path: Path) -> None:
    out = io.BytesIO()
    writer = pcapng.Writer(out)
    writer.begin(begin())
    writer.event(series()[0])
    (tmp_path / "cut").write_bytes(out.getvalue())
    assert not capture.load([tmp_path / "cut"]).whole
    (tmp_path / "cut").write_bytes(out.getvalue()[:-5])
    with pytest.raises(BadData, match="cut: the capture ends inside a block"):
        capture.load([tmp_path / "cut"])


def test_what_is_none_of_ours(tmp_path: Path) -> None:
    contents = {"text": b"hello\n", "empty": b"", "json": b'{"kind": "frame"}\n', "long": b"x" * (2 << 20),
                "block": b"\x0a\x0d\x0d\x0a" + b"\xff" * 40}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadData, match=name):
            capture.load([tmp_path / name])
    with pytest.raises(BadData, match="No such file"):
        capture.load([tmp_path / "missing"])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([pcapng.Writer, lines.Writer]), st.data())
def test_broken_files_are_refused_and_no_more(kind: Kind, data: st.DataObject) -> None:
    content = bytearray(written(kind))
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(content) - 1))
        what = data.draw(st.sampled_from(("byte", "cut", "double", "drop")))
        if what == "byte":
            content[at] = data.draw(st.integers(0, 255))
        elif what == "cut":
            del content[max(1, at):]
        elif what == "double":
            content[at:at] = content[at:at + 40]
        else:
            del content[at:at + 4]
        if not content:
            return
    read = pcapng.read if kind is pcapng.Writer else lines.read
    try:
        for thing in read(io.BytesIO(bytes(content))):
            assert isinstance(thing, msgspec.Struct)
    except BadData as error:
        assert error.message


# --- other people's tools ---


def tool(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"needs {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def pcap(tmp_path: Path) -> str:
    path = tmp_path / "trace.pcapng"
    path.write_bytes(written(pcapng.Writer))
    return str(path)


def test_tshark_shows_every_field(pcap: str) -> None:
    fields = ("frame.interface_name", "frame.time_epoch", "frame.packet_id", "frame.verdict.ebpf_tc",
              "frame.drop_count", "frame.len", "frame.cap_len", "frame.packet_flags_direction", "ip.src",
              "frame.comment")
    asked = [word for field in fields for word in ("-e", field)]
    said = tool("tshark", "-nr", pcap, "-Y", "frame.packet_id", "-T", "fields", "-E", "separator=|", *asked)
    rows = [line.split("|") for line in said.splitlines()]
    name = str(1842 << 32 | 7)
    assert [row[0] for row in rows] == [f"{VM}/{point}" for point in ("held", "released", "discarded", "received")]
    assert [row[1] for row in rows[:2]] == ["1700000000.000001000", "1700000000.004312000"]
    assert [row[2] for row in rows] == [name, name, name, "0"], "the same at every point"
    assert [row[3] for row in rows] == ["7", "0", "2", "7"]
    assert [row[4] for row in rows] == ["0", "5", "0", "0"]
    assert rows[3][5:7] == ["65000", "38"]
    assert [int(row[7], 16) for row in rows] == [2, 2, 2, 1]
    assert rows[0][8] == "10.77.9.10"
    assert rows[1][9] == (
        "epoch=1842 seq=7 event=released hold_us=4311 cause=ack host=alpha vm=web1 term=3 number=91240 epoch_us=4000 "
        "transfer_us=200 ack_us=100 release_us=11 held_frames=- held_bytes=- under=3 committed=91240 segments=1")


def test_tshark_filters_by_epoch_point_and_verdict(pcap: str) -> None:
    def count(expression: str) -> int:
        return len(tool("tshark", "-nr", pcap, "-Y", expression).splitlines())

    assert count(f"frame.packet_id == {1842 << 32 | 7}") == 3
    assert count("frame.verdict.ebpf_tc == 2") == 1
    assert count('frame.interface_name == "web1/released"') == 1
    assert count('frame.comment contains "cause=ack"') == 1


def test_tshark_shows_epochs_between_the_frames(pcap: str) -> None:
    said = tool("tshark", "-nr", pcap).splitlines()
    assert "a trace of web1 on alpha begins" in said[0]
    assert "UDP" in said[1] and "epoch 1842 of term 3 ends with frame 91240" in said[2] and "committed" in said[3]
    assert "5 lost" in said[-1]


def test_tcpdump_reads_it(pcap: str) -> None:
    said = tool("tcpdump", "-nr", pcap).splitlines()
    assert len(said) == 4 and all("10.77.9.10" in line for line in said)
    assert len(tool("tcpdump", "-nr", pcap, "udp port 53").splitlines()) >= 3


def test_capinfos_counts_its_interfaces(pcap: str) -> None:
    said = tool("capinfos", pcap)
    assert "Number of interfaces in file: 4" in said and "nanoseconds" in said


def test_scapy_reads_it(pcap: str) -> None:
    from scapy.utils import PcapNgReader

    packets = list(PcapNgReader(pcap))
    assert [packet.sniffed_on for packet in packets if packet.sniffed_on] == [
        f"{VM}/{point}" for point in ("held", "released", "discarded", "received")]
