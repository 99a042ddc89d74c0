# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace as a picture: frames as dots over time, what was held as bars, epochs as bands, takeovers as lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.errors import BadData, Unavailable
from appliance.trace import notes
from appliance.trace.capture import Capture
from appliance.trace.event import Event, Frame, Point
from appliance.trace.words import clock

SCHEMA = "holdfast.trace-plot/1"
LANES = ((Point.RECEIVED, Point.INJECTED, Point.REFUSED), (Point.HELD, Point.OVERFLOW, Point.DISCARDED),
         (Point.RELEASED, Point.REPLAYED, Point.ANNOUNCED, Point.DROPPED, Point.FENCED, Point.LOST))
"""From below."""
NAMES = ("in", "held", "out")
COLOURS = {
    Point.RECEIVED: "#7f7f7f", Point.INJECTED: "#17becf", Point.REFUSED: "#d62728", Point.HELD: "#ff9f1c",
    Point.OVERFLOW: "#d62728", Point.DISCARDED: "#8c1c13", Point.RELEASED: "#2ca02c", Point.REPLAYED: "#1f77b4",
    Point.ANNOUNCED: "#9467bd", Point.DROPPED: "#d62728", Point.FENCED: "#8c1c13", Point.LOST: "#e377c2",
}  # fmt: skip
MARKED = ("takeover-begin", "takeover-done", "gate-open", "peer-down", "qemu-died", "vm-stopped", "handed-over",
          "fenced")
"""Events that stand in the picture."""
NAMED = 40
"""Of no more epochs the numbers are written: at the pauses that end them."""
FRAMES = 20_000
"""So many frames are drawn, at most; more would be a blot."""
DEPTH = 24
"""Bars of held frames lie in so many rows."""


def draw(capture: Capture, out: Path, begin_s: float = 0.0, end_s: float | None = None) -> dict[str, Any]:
    """Write the picture of what happened from `begin_s` to `end_s` seconds after the first event; png, svg or pdf.

    Returns what is in it. Raises BadData (nothing to draw), Unavailable (no matplotlib, or no place to write).
    """
    events = _between(capture.events, begin_s, end_s)
    pyplot = _pyplot()
    hosts = sorted({event.host for event in events})
    figure, rows = pyplot.subplots(len(hosts), 1, sharex=True, squeeze=False, figsize=(14, 1 + 3.2 * len(hosts)))
    vms = ", ".join(sorted({event.vm for event in events}))
    rows[0][0].set_title(f"{vms}, from {clock(events[0].at_ns)}", fontsize=10, loc="left", pad=52)
    drawn = {host: _Host(row[0], host, events).draw() for host, row in zip(hosts, rows, strict=True)}
    rows[-1][0].set_xlabel("ms")
    partial = out.with_name(f".{out.name}.partial")
    try:
        figure.savefig(partial, format=out.suffix[1:] or "png", bbox_inches="tight", dpi=140)
        partial.replace(out)
    except OSError as error:
        raise Unavailable(f"{out} cannot be written: {error.strerror}", "choose another place") from None
    except ValueError as error:
        raise BadData(f"{out}: {error}", "name it .png, .svg or .pdf") from None
    finally:
        pyplot.close(figure)
    return {"schema": SCHEMA, "file": str(out), "hosts": drawn,
            "seconds": round((events[-1].at_ns - events[0].at_ns) / 1e9, 6)}


def _between(events: Sequence[Event], begin_s: float, end_s: float | None) -> list[Event]:
    if not events:
        raise BadData("there is nothing to draw", "the capture has no events")
    first, length = events[0].at_ns, (events[-1].at_ns - events[0].at_ns) / 1e9
    last = length if end_s is None else end_s
    found = [event for event in events if begin_s <= (event.at_ns - first) / 1e9 <= last]
    if not found:
        raise BadData(f"nothing happened from {begin_s:g} s to {last:g} s", f"the capture is {length:.3f} s long")
    return found


def _pyplot() -> Any:
    try:
        import matplotlib  # half a second: only who draws pays for it
    except ImportError:
        raise Unavailable("a picture needs matplotlib", "apt install python3-matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


class _Host:
    """One host's part of the picture. Lanes from below: what comes in, what is held, what comes to the guard."""

    def __init__(self, axis: Any, host: str, events: Sequence[Event]) -> None:
        self._axis, self._host, self._origin = axis, host, events[0].at_ns
        self._events = [event for event in events if event.host == host]
        frames = [event for event in self._events if isinstance(event, Frame)]
        self._all, self._frames = len(frames), frames[:: max(1, -(-len(frames) // FRAMES))]

    def draw(self) -> dict[str, int]:
        """Returns how much of what is in it."""
        epochs, held = self._epochs(), self._held()
        for lane, points in enumerate(LANES):
            for point in points:
                at = [(self._ms(frame.at_ns), _height(lane, frame)) for frame in self._frames if frame.point is point]
                if at:
                    self._axis.scatter(*zip(*at, strict=True), s=9, color=COLOURS[point], label=point.value, zorder=3,
                                       linewidths=0)
        marks = self._marks()
        self._axis.set_ylim(0, 3)
        self._axis.set_yticks((0.5, 1.5, 2.5), NAMES)
        self._axis.set_ylabel(self._host)
        if self._frames:
            self._axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False)
        return {"frames": self._all, "drawn": len(self._frames), "held": held, "epochs": epochs, "marks": marks}

    def _ms(self, at_ns: int) -> float:
        return (at_ns - self._origin) / 1e6

    def _held(self) -> int:
        """Bars from where a frame was held to where that ended; red where it must not have."""
        from matplotlib.collections import LineCollection

        ended = [frame for frame in self._frames if frame.hold_ns is not None and frame.point is not Point.HELD]
        bars = [((self._ms(frame.at_ns - (frame.hold_ns or 0)), _height(1, frame)),
                 (self._ms(frame.at_ns), _height(1, frame))) for frame in ended]
        colours = [COLOURS[Point.DROPPED if frame.cause == "none" else Point.HELD] for frame in ended]
        self._axis.add_collection(LineCollection(bars, colors=colours, linewidths=1.0, alpha=0.8))
        return len(bars)

    def _epochs(self) -> int:
        """Bands of two shades, pauses in grey, commits as green lines."""
        named: list[tuple[int, int]] = []
        before = None
        for event in self._events:
            if isinstance(event, notes.Taken):
                begun = event.stopped_ns
                ended = begun + event.stop_ns + event.save_ns + event.resume_ns
                if before is not None:
                    shade = "#eaf2ff" if event.epoch % 2 else "#f7fbff"
                    self._axis.axvspan(self._ms(before), self._ms(begun), color=shade, linewidth=0, zorder=0)
                self._axis.axvspan(self._ms(begun), self._ms(ended), color="#b8b8b8", linewidth=0, zorder=0.5)
                named.append((begun, event.epoch))
                before = begun
            elif isinstance(event, notes.Acked | notes.Committed):
                self._axis.axvline(self._ms(event.at_ns), color="#2ca02c", linewidth=0.6, alpha=0.6, zorder=1)
        for begun, epoch in named if len(named) <= NAMED else ():
            self._axis.annotate(str(epoch), (self._ms(begun), 0.04), fontsize=6, ha="right", color="#555555")
        return len(named)

    def _marks(self) -> int:
        """What happened to the VM, as lines across."""
        marks = [event for event in self._events if isinstance(event, notes.Happened) and event.event in MARKED]
        for number, mark in enumerate(marks):
            self._axis.axvline(self._ms(mark.at_ns), color="black", linewidth=0.9, linestyle="--", zorder=2)
            self._axis.annotate(mark.event, (self._ms(mark.at_ns), 3.02 + 0.16 * (number % 4)), fontsize=7,
                                annotation_clip=False)
        return len(marks)


def _height(lane: int, frame: Frame) -> float:
    """Frames that are near each other in time lie beside each other; a held one where its bar is."""
    if lane == 1:
        return 1.1 + 0.8 * (frame.number % DEPTH) / DEPTH
    return lane + 0.3 + 0.4 * (frame.at_ns // 1000 % 7) / 7
