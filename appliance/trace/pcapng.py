# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace as a pcapng file, for Wireshark, tshark, tcpdump and our own reading; and read back.

One interface for each VM and point. Each frame carries its packet id (epoch << 32 | seq, the same at every point), a
verdict (the TC action), the number of events lost before it, and one comment of key=value pairs in an order that
stays. Notes of epochs are systemd journal entries: Wireshark shows them between the frames, tcpdump passes over them.
Blocks and options are those of draft-ietf-opsawg-pcapng.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import msgspec

from appliance import __version__
from appliance.errors import BadData
from appliance.trace import notes, words
from appliance.trace.event import DROP, MEANING, VERDICT, Event, Frame, Point, Waits

_SECTION, _INTERFACE, _PACKET, _JOURNAL = 0x0A0D0D0A, 1, 6, 9
_BYTE_ORDER = 0x1A2B3C4D
_COMMENT, _APPLICATION = 1, 4  # options of a section; the first of every block
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9  # of an interface
_FLAGS, _LOST, _ID, _VERDICT = 2, 4, 5, 7  # of a packet
_ETHERNET, _SNAP_LENGTH, _NANOSECONDS = 1, 0, b"\x09"
_IN, _OUT = struct.pack("<I", 1), struct.pack("<I", 2)
_TC = 1  # a verdict of an eBPF program of TC
_INWARD = frozenset((Point.RECEIVED, Point.REFUSED, Point.INJECTED))
_PAD = (b"", b"\0", b"\0\0", b"\0\0\0")
_HEAD = struct.Struct("<II")
_OPTION = struct.Struct("<HH")
_BODY = struct.Struct("<IIIII")
_FIXED = struct.Struct("<HHIHHQHHQHHBq3x")  # flags, lost, id and verdict with their option heads
_LONGEST = 1 << 20  # bytes of one block
_KINDS: msgspec.json.Decoder[notes.Begin | notes.Note | notes.End] = msgspec.json.Decoder(
    notes.Begin | notes.Note | notes.End)


class Writer:
    """Writes a trace of one host to `out`."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._interfaces: dict[tuple[str, Point], int] = {}
        self._lost = 0

    def begin(self, begin: notes.Begin) -> None:
        options = _option(_APPLICATION, f"holdfast trace {__version__}") + _option(_COMMENT, f"host={begin.host}")
        self._block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1) + options + _END)
        vms = ", ".join(vm.vm for vm in begin.vms)
        self._journal(begin.unix_ns, f"a trace of {vms} on {begin.host} begins", begin, {"HOST": begin.host})

    def event(self, event: Event) -> None:
        if isinstance(event, Frame):
            self._frame(event)
        else:
            fields = {"HOST": event.host, "VM": event.vm}
            for name in ("term", "epoch"):
                if isinstance(value := getattr(event, name, None), int):
                    fields[name.upper()] = str(value)
            self._journal(event.at_ns, words.says(event), event, fields)

    def end(self, end: notes.End) -> None:
        self._journal(end.at_ns, f"the trace ends: {end.cause}: {end.frames} events, {end.lost_frames} lost", end,
                      {"HOST": end.host})

    def flush(self) -> None:
        self._out.flush()

    def _frame(self, frame: Frame) -> None:
        interface = self._interfaces.get((frame.vm, frame.point))
        if interface is None:
            interface = self._interface(frame)
        lost = frame.lost_before - self._lost
        if lost > 0:
            self._lost = frame.lost_before
        said, snap, at_ns = comment(frame).encode(), frame.snap, frame.at_ns
        captured = len(snap)
        flags = _FIXED.pack(_FLAGS, 4, 1 if frame.point in _INWARD else 2, _LOST, 8, max(lost, 0), _ID, 8,
                            frame.packet_id, _VERDICT, 9, _TC, VERDICT.get(frame.point, DROP))
        head = _BODY.pack(interface, at_ns >> 32, at_ns & 0xFFFFFFFF, captured, max(frame.size, captured))
        self._block(_PACKET, b"".join((head, snap, _PAD[-captured % 4], _OPTION.pack(_COMMENT, len(said)), said,
                                       _PAD[-len(said) % 4], flags, _END)))

    def _interface(self, frame: Frame) -> int:
        number = self._interfaces[frame.vm, frame.point] = len(self._interfaces)
        options = (_option(_NAME, f"{frame.vm}/{frame.point}"), _option(_RESOLUTION, _NANOSECONDS),
                   _option(_DESCRIPTION, f"{MEANING[frame.point]}; on {frame.host}"), _END)
        self._block(_INTERFACE, struct.pack("<HHI", _ETHERNET, 0, _SNAP_LENGTH) + b"".join(options))
        return number

    def _journal(self, at_ns: int, message: str, thing: notes.Begin | notes.Note | notes.End,
                 fields: dict[str, str]) -> None:
        own = {f"HOLDFAST_{key}": value for key, value in fields.items()}
        lines = {"__REALTIME_TIMESTAMP": str(at_ns // 1000), "MESSAGE": " ".join(message.splitlines()),
                 "PRIORITY": "6", "SYSLOG_IDENTIFIER": "holdfast", **own,
                 "HOLDFAST_NOTE": msgspec.json.encode(thing).decode()}
        entry = "".join(f"{key}={value}\n" for key, value in lines.items()).encode()
        self._block(_JOURNAL, entry + bytes(-len(entry) % 4))

    def _block(self, kind: int, body: bytes) -> None:
        length = len(body) + 12
        self._out.write(_HEAD.pack(kind, length) + body + length.to_bytes(4, "little"))


def _option(code: int, value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _OPTION.pack(code, len(data)) + data + bytes(-len(data) % 4)


_END = _OPTION.pack(0, 0)


def comment(frame: Frame) -> str:
    """The line that each frame carries. Keys and their order stay; new ones come at the end. A dash: not known."""
    hold, waits, cause = frame.hold_ns, frame.waits, frame.cause or "-"
    waited = _NOT_KNOWN
    if waits:
        waited = (f"epoch_us={waits.epoch_ns // 1000} transfer_us={waits.transfer_ns // 1000} "
                  f"ack_us={waits.ack_ns // 1000} release_us={waits.release_ns // 1000}")
    return (f"epoch={frame.epoch} seq={frame.seq} event={frame.point} hold_us={'-' if hold is None else hold // 1000} "
            f"cause={cause if ' ' not in cause else _quoted(cause)} host={frame.host} vm={frame.vm} term={frame.term} "
            f"number={frame.number} {waited} held_frames={_or_dash(frame.held_frames)} "
            f"held_bytes={_or_dash(frame.held_bytes)} under={_or_dash(frame.under)} "
            f"committed={_or_dash(frame.committed)} segments={frame.segments}")


_NOT_KNOWN = "epoch_us=- transfer_us=- ack_us=- release_us=-"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "'") + '"'


# --- reading ---


def read(data: BinaryIO) -> Iterator[notes.Begin | Event | notes.End]:
    """What `Writer` wrote, in order. Raises BadData for what is none of ours, or cut off inside a block."""
    interfaces: list[str] = []
    lost = 0
    while head := data.read(_HEAD.size):
        kind, body = _next(data, head)
        if kind == _SECTION:
            if struct.unpack_from("<I", body)[0] != _BYTE_ORDER:
                raise BadData("a capture of the other byte order", "it was not written by holdfast trace")
            interfaces, lost = [], 0
        elif kind == _INTERFACE:
            interfaces.append(_text(_options(body, 8), _NAME))
        elif kind == _PACKET:
            frame = _read_frame(body, lost)
            if frame is not None:
                lost = frame.lost_before
                yield frame
        elif kind == _JOURNAL and (note := _read_note(body)) is not None:
            yield note


def _next(data: BinaryIO, head: bytes) -> tuple[int, bytes]:
    if len(head) < _HEAD.size:
        raise BadData("the capture ends inside a block", "was it cut off?")
    kind, length = _HEAD.unpack(head)
    if length % 4 or not 12 <= length <= _LONGEST:
        raise BadData(f"a block of {length} bytes", "is it a pcapng file of holdfast trace?")
    rest = data.read(length - 8)
    if len(rest) < length - 8:
        raise BadData("the capture ends inside a block", "was it cut off?")
    return kind, rest[:-4]


def _options(body: bytes, at: int) -> dict[int, bytes]:
    """The first of each kind."""
    found: dict[int, bytes] = {}
    while at + 4 <= len(body):
        code, length = _OPTION.unpack_from(body, at)
        if not code:
            break
        found.setdefault(code, body[at + 4:at + 4 + length])
        at += 4 + length + -length % 4
    return found


def _text(options: dict[int, bytes], code: int) -> str:
    return options.get(code, b"").decode(errors="replace")


def _read_frame(body: bytes, lost: int) -> Frame | None:
    if len(body) < _BODY.size:
        raise BadData("a packet without its head", "is it a pcapng file of holdfast trace?")
    _, high, low, captured, size = _BODY.unpack_from(body)
    if captured > len(body) - _BODY.size:
        raise BadData("a packet longer than its block", "is it a pcapng file of holdfast trace?")
    options = _options(body, _BODY.size + captured + -captured % 4)
    pairs = _pairs(_text(options, _COMMENT))
    if "epoch" not in pairs or "event" not in pairs:
        return None  # of another program
    lost += int.from_bytes(options.get(_LOST, b""), "little")

    def number(key: str) -> int | None:
        return None if pairs.get(key, "-") == "-" else int(pairs[key])

    try:
        steps = [number(key) for key in ("epoch_us", "transfer_us", "ack_us", "release_us")]
        hold, cause = number("hold_us"), pairs.get("cause", "-")
        return Frame(
            at_ns=high << 32 | low, host=pairs.get("host", ""), vm=pairs.get("vm", ""), point=Point(pairs["event"]),
            cause="" if cause == "-" else cause, term=number("term") or 0, epoch=number("epoch") or 0,
            seq=number("seq") or 0, number=number("number") or 0, size=size, segments=number("segments") or 0,
            hold_ns=None if hold is None else hold * 1000, waits=_waits(steps), held_frames=number("held_frames"),
            held_bytes=number("held_bytes"), under=number("under"), committed=number("committed"), lost_before=lost,
            snap=body[_BODY.size:_BODY.size + captured])
    except ValueError as error:
        raise BadData(f"a comment that makes no sense: {error}", "was the file changed?") from None


def _waits(steps: list[int | None]) -> Waits | None:
    known = [step * 1000 for step in steps if step is not None]
    return Waits(*known) if len(known) == 4 else None


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    while text:
        key, equals, text = text.partition("=")
        if not equals:
            break
        if text.startswith('"'):
            value, _, text = text[1:].partition('"')
            text = text.lstrip(" ")
        else:
            value, _, text = text.partition(" ")
        pairs[key] = value
    return pairs


def _read_note(body: bytes) -> notes.Begin | notes.Note | notes.End | None:
    for line in body.rstrip(b"\0").split(b"\n"):
        key, _, value = line.partition(b"=")
        if key == b"HOLDFAST_NOTE":
            try:
                return _KINDS.decode(value)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadData(f"a note that makes no sense: {error}", "was the file changed?") from None
    return None
