# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs `trace ...`: their words and help. What they do is imported when they are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb

if TYPE_CHECKING:
    from appliance.cli.call import Call

_PAGE = "holdfast-trace"
_VM = Argument("vm", "of this VM; of all if not given", kind=Kind.VM, optional=True)
_COUNT = Argument("--count", "end after so many", kind=Kind.COUNT, short="-c")
_DURATION = Argument("--duration", "end after this time", kind=Kind.SECONDS)
_READ = Argument("--read", "out of a capture, or several with commas between them, instead of live", kind=Kind.FILE,
                 short="-r")


def _trace(call: Call) -> int:
    from appliance.trace import show

    return show.trace(call)


def _epochs(call: Call) -> int:
    from appliance.trace import reports

    return reports.epochs(call)


def _explain(call: Call) -> int:
    from appliance.trace import reports

    return reports.explain(call)


def _audit(call: Call) -> int:
    from appliance.trace import reports

    return reports.audit(call)


def _plot(call: Call) -> int:
    from appliance.trace import reports

    return reports.plot(call)


def _points(text: str) -> Any:
    from appliance.trace import select

    return select.points(text)


def _epoch(text: str) -> Any:
    from appliance.trace import select

    return select.epochs(text)


def _packet(text: str) -> Any:
    from appliance.trace import select

    return select.packet(text) or "next"


def _size(text: str) -> int:
    from appliance.units import parse_size

    return parse_size(text)


def _snap(text: str) -> int:
    if not text.isdigit() or int(text) > 2048:
        raise ValueError(f"{text!r} bytes of each frame", "give 0 to 2048")
    return int(text)


VERBS = (
    Verb(
        "trace", "what happened to each packet on its way through the gate",
        text="""Each frame is shown at each point of its way: held in the gate, released by the guard (or dropped, with
the reason), received by the VM. EPOCH.SEQ names a frame, the same at every point; 0.N is the N-th that the gate has
seen, while the VM runs alone. What is known of a released frame: how long it was held, and what for (with -v): the end
of its epoch, the transfer to the backup, the acknowledgement, its turn.

The filter is tcpdump's (pcap-filter(7)). It is run in the kernel, before anything is captured.

Tracing is switched on by a flag: the gate is neither reloaded nor held up. A trace that cannot keep up loses events,
and says how many. Four may go on at once.

-w writes pcapng: one interface for each point, the packet id epoch<<32|seq, a verdict, and a comment of key=value
pairs. Each frame is in it once, where its way ends; --point all adds where it was held. Wireshark, tshark and tcpdump
read it; docs/trace.md says how.""",
        arguments=(
            Argument("words", "a VM (all if not given), and a filter of tcpdump", kind=Kind.PHRASE,
                     metavar="[VM] [FILTER]", optional=True),
            Argument("--write", "write pcapng there; - is standard output", kind=Kind.FILE, short="-w"), _READ,
            Argument("--point", "at these points alone, with commas between them; or all", read=_points,
                     metavar="POINT"),
            Argument("--epoch", "of this epoch, or of those from N to M (N-M)", read=_epoch, metavar="N"),
            Argument("--min-hold", "held for at least this time", kind=Kind.SECONDS), _COUNT, _DURATION,
            Argument("--snap", "bytes captured of each frame; 128 if not given, 2048 at most", short="-s", read=_snap,
                     default=128, metavar="BYTES"),
            Argument("--buffer", "of the kernel, such as 4MiB: a power of two; 16MiB if not given", read=_size,
                     default=16 << 20, metavar="SIZE"),
            Argument("--kernel", "also what the kernel itself drops and why, and what this host's sockets send again",
                     kind=Kind.FLAG),
            Argument("--verbose", "every wait of every frame", kind=Kind.FLAG, short="-v"),
            Argument("--ready-fd", "write a line to this descriptor once it is on", kind=Kind.COUNT, metavar="FD"),
        ),
        examples=(
            ("holdfast trace web1 tcp port 80", "what becomes of the web server's packets"),
            ("holdfast trace --min-hold 50ms --point released", "what was held for long"),
            ("holdfast trace web1 --point dropped,fenced,overflow,discarded", "what did not get out, and why"),
            ("holdfast trace -w out.pcapng --duration 10s", "for Wireshark"),
            ("holdfast trace web1 --kernel --point lost", "what the kernel drops, and where"),
        ),
        access=Access.ROOT, service="trace", schema="holdfast.trace/1", run=_trace, page=_PAGE,
        exits={Exit.OK: "it ended as it was told to, or was interrupted",
               Exit.UNREACHABLE: "the service does not answer, or has ended meanwhile"},
    ),
    Verb(
        "trace epochs", "one line for each epoch: its pause step by step, what it carried, how it was committed",
        text="""Durations are in milliseconds. LENGTH: since the pause before. PAUSE is STOP, SAVE and RESUME. Then the
dirty pages, the bytes of the epoch, the frames that waited for it; XFER until all of it was on the link, ACK until the
backup had acknowledged it, OUT until the last of its frames was out.""",
        arguments=(_VM, _READ, _COUNT, _DURATION),
        examples=(("holdfast trace epochs web1 -c 20", "the next twenty"),
                  ("holdfast trace epochs -r out.pcapng", "those of a capture")),
        access=Access.GROUP, service="trace-epochs", schema="holdfast.trace-epochs/1", run=_epochs, page=_PAGE,
    ),
    Verb(
        "trace explain", "one packet's journey in words",
        text="""Out of a capture, or live: then the packet must still be to come, and next is the next that the VM sends
(and the filter takes).""",
        arguments=(Argument("packet", "EPOCH.SEQ of the packet, or next", read=_packet, metavar="EPOCH.SEQ"),
                   Argument("words", "a VM (all if not given), and a filter of tcpdump", kind=Kind.PHRASE,
                            metavar="[VM] [FILTER]", optional=True), _READ,
                   Argument("--timeout", "wait for the packet no longer; 30 s if not given", kind=Kind.SECONDS,
                            default=30.0)),
        examples=(("holdfast trace explain 1842.7 -r out.pcapng", "why that packet took so long"),
                  ("holdfast trace explain next web1 icmp", "what an answer to a ping waits for")),
        access=Access.ROOT, service="trace", schema="holdfast.trace-explain/1", run=_explain, page=_PAGE,
        exits={Exit.TIMEOUT: "the packet did not come"},
    ),
    Verb(
        "trace audit", "prove or refute that no frame left before its commit, and that one host spoke at a time",
        text="""Frames that left, as the kernel saw them, are held against the acknowledgement of their epoch and,
where the backup was traced too, against the moment at which it had all of it. Offending frames are printed. A trace
that lost events and shows no offence is undecided. Give the captures of both hosts to have both sides of the story.""",
        arguments=(Argument("files", "captures of trace -w or -j, of one or both hosts", kind=Kind.PHRASE,
                            metavar="[FILE ...]", optional=True),
                   Argument("--live", "this host, from now on, until --duration is over; so it is without a FILE",
                            kind=Kind.FLAG), _DURATION,
                   Argument("--clock", "how far apart the clocks of the two hosts may be; 5 ms if not given",
                            kind=Kind.SECONDS, default=0.005)),
        examples=(("holdfast trace audit alpha.pcapng beta.pcapng", "what both hosts saw, merged"),
                  ("holdfast trace audit --live --duration 60s", "the next minute")),
        access=Access.ROOT, service="trace", schema="holdfast.trace-audit/1", run=_audit, page=_PAGE,
        exits={Exit.OK: "proven", Exit.DEGRADED: "undecided", Exit.FAILED: "refuted: the offending frames are printed"},
    ),
    Verb(
        "trace plot", "a picture of a capture: frames over time, what was held, epochs and commits, takeovers",
        text="""Frames are dots: below those that come in, in the middle those that are held (as bars, from when to
when), above those that come to the guard. Epochs are bands, their pauses grey, commits green lines; what happened to
the VM stands across. Captures of both hosts stand one above the other, over the same time.""",
        arguments=(Argument("files", "captures of trace -w or -j, of one or both hosts", kind=Kind.PHRASE,
                            metavar="FILE ...", optional=True),
                   Argument("--out", "a .png, .svg or .pdf; timeline.png if not given", kind=Kind.FILE, short="-o",
                            default="timeline.png"),
                   Argument("--from", "seconds after the first event; 0 if not given", kind=Kind.SECONDS, default=0.0),
                   Argument("--to", "seconds after the first event; the end if not given", kind=Kind.SECONDS)),
        examples=(("holdfast trace plot alpha.pcapng beta.pcapng -o takeover.svg --from 1.9 --to 2.3", "a takeover"),),
        schema="holdfast.trace-plot/1", run=_plot, page=_PAGE,
    ),
)
