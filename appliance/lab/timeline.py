# SPDX-License-Identifier: GPL-2.0-or-later
"""The picture of a run: client latency over time, the VM's epochs, and who ran it (timeline.png)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.core import Phase
from appliance.lab.failover import Failover
from appliance.lab.observer import Seen
from appliance.lab.recording import Recording

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMS = {"echo": "#1f77b4", "incr": "#2ca02c", "set": "#9467bd", "ping": "#aaaaaa", "download": "#8c564b"}
PHASES = {
    Phase.SOLO: "#f4a582", Phase.SYNCING: "#fddbc7", Phase.PROTECTED: "#4393c3", Phase.TAKING_OVER: "#b2182b",
    Phase.JOINING: "#e0e0e0", Phase.RECEIVING: "#d1e5f0", Phase.STANDBY: "#92c5de", Phase.WAITING: "#f0f0f0",
    Phase.STARTING: "#e0e0e0", Phase.ASKING: "#b2182b", Phase.FAILED: "#000000", Phase.FENCING: "#d6604d",
    Phase.HANDOVER: "#762a83", Phase.HANDED: "#9970ab", Phase.YIELDED: "#c2a5cf", Phase.FENCED: "#4d4d4d",
}  # fmt: skip
HOSTS = ("alpha", "beta")


def draw(path: Path, recording: Recording, seen: Seen, failovers: Sequence[Failover], title: str) -> None:
    """Write the picture to `path` (PNG). Needs no display. Raises OSError."""
    import matplotlib  # half a second: only who draws pays for it

    matplotlib.use("Agg")
    from matplotlib import pyplot

    starts = [stream.start_ns[0] for stream in recording.streams.values() if stream.start_ns]
    ends = [stream.start_ns[-1] for stream in recording.streams.values() if stream.start_ns]
    origin = (min(starts, default=0) + recording.unix_offset_ns) / 1e9
    length = (max(ends, default=0) - min(starts, default=0)) / 1e9
    figure, (client, pauses, hosts) = pyplot.subplots(
        3, 1, figsize=(14, 9), sharex=True, height_ratios=[5, 2, 1], layout="constrained"
    )
    figure.suptitle(title, fontsize=12)
    _client(client, recording, origin)
    _epochs(pauses, seen, origin)
    _hosts(hosts, seen, failovers, origin, length)
    for axes in (client, pauses):
        _faults(axes, seen, failovers, origin, words=axes is client)
    hosts.set_xlabel("seconds since the client began")
    hosts.set_xlim(-0.5, length + 0.5)
    partial = path.with_name(path.name + ".partial")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(path)
    pyplot.close(figure)


def _client(axes: Axes, recording: Recording, origin: float) -> None:
    for name, colour in STREAMS.items():
        stream = recording.streams.get(name)
        if stream is None:
            continue
        times = [(at + recording.unix_offset_ns) / 1e9 - origin for at in stream.start_ns]
        big = name == "download"
        axes.plot(times, stream.latencies_ms(), "s" if big else ".", markersize=4 if big else 2.5, color=colour,
                  label=name, rasterized=True, zorder=1 if name == "ping" else 2)  # fmt: skip
        for broken in stream.broken:
            axes.axvline((broken.at_ns + recording.unix_offset_ns) / 1e9 - origin, color="black", linewidth=2)
    _logarithmic(axes)
    axes.set_ylabel("what the client waited, ms")
    axes.grid(True, which="major", axis="y", linewidth=0.4)
    axes.legend(loc="lower right", ncols=len(STREAMS), markerscale=3, fontsize=9)


def _logarithmic(axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _epochs(axes: Axes, seen: Seen, origin: float) -> None:
    for host, colour in zip(HOSTS, ("#4393c3", "#d6604d"), strict=True):
        epochs = [epoch for epoch in seen.epochs.values() if epoch.host == host]
        times = [epoch.at - origin for epoch in epochs]
        axes.plot(times, [epoch.pause_ms for epoch in epochs], ".", markersize=2, color=colour, label=f"on {host}",
                  rasterized=True)  # fmt: skip
    _logarithmic(axes)
    axes.set_ylabel("epochs: pause, ms")
    axes.grid(True, which="major", axis="y", linewidth=0.4)
    if seen.epochs:
        axes.legend(loc="upper right", markerscale=5, fontsize=9)


def _faults(axes: Axes, seen: Seen, failovers: Sequence[Failover], origin: float, *, words: bool) -> None:
    top = axes.get_xaxis_transform()
    for failover in failovers:
        fault, host = failover.fault_at, failover.survivor
        spoke = seen.first("gate-open", host, fault)
        begun = seen.first("sync-begin", host, fault)
        whole = seen.first("protected", host, begun or fault)
        axes.axvline(fault - origin, color="#b2182b", linewidth=1)
        axes.axvline(failover.healed_at - origin, color="#4d9221", linewidth=1, linestyle="--")
        if spoke is not None:
            axes.axvspan(fault - origin, spoke - origin, color="#b2182b", alpha=0.35, linewidth=0)
        if begun is not None and whole is not None:
            axes.axvspan(begun - origin, whole - origin, color="#92c5de", alpha=0.5, linewidth=0)
        if not words:
            continue
        took = "" if spoke is None else f"\n{host} took over\nafter {(spoke - fault) * 1e3:.0f} ms"
        axes.text(fault - origin, 0.97, f" {failover.fault} of {failover.victim}{took} ", transform=top, fontsize=8,
                  color="#b2182b", va="top", ha="right")  # fmt: skip
        axes.text(failover.healed_at - origin, 0.97, f" {failover.victim} is back,\n resync", transform=top,
                  fontsize=8, color="#4d9221", va="top")  # fmt: skip


def _hosts(axes: Axes, seen: Seen, failovers: Sequence[Failover], origin: float, length: float) -> None:
    shown = set()
    for row, host in enumerate(HOSTS):
        deaths = [failover.fault_at for failover in failovers if failover.victim == host]
        changes = [h for h in seen.events() if h.host == host and h.name in set(Phase)]
        for number, change in enumerate(changes):
            following = [h.at for h in changes[number + 1 :][:1]] + [at for at in deaths if at > change.at]
            begin, end = change.at - origin, min([*(at - origin for at in following), length + 0.5])
            label = change.name if change.name not in shown and change.name != Phase.WAITING else None
            shown.add(change.name)
            axes.barh(row, end - begin, left=begin, height=0.7, color=PHASES[Phase(change.name)], label=label)
    axes.set_yticks(range(len(HOSTS)), HOSTS)
    axes.invert_yaxis()
    if shown:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.75), ncols=len(PHASES), fontsize=8, frameon=False)
