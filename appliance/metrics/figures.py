# SPDX-License-Identifier: GPL-2.0-or-later
"""Every figure that Prometheus can read, declared once: name, kind, what it says, its labels, where it comes from.

No label names a flow, a client or an address: the number of series grows with VMs, links and parts of a host alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from appliance import __version__
from appliance.core import Phase, Role
from appliance.health.reading import State
from appliance.metrics.sight import Sight, VmSight
from appliance.sums import Histogram
from vmlink.wire import VERSION

Samples = Iterator[tuple[tuple[str, ...], float]]
PREFIX = "holdfast_"


@dataclass(frozen=True)
class Figure:
    """`name` without the prefix; a counter's ends with _total. `read` gives the values of the labels, and the value."""

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[Sight], Samples]

    def family(self, sight: Sight) -> Metric:
        name = PREFIX + self.name
        made: Any = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family: Metric = made(name.removesuffix("_total"), self.help, labels=self.labels)
        for values, value in self.read(sight):
            family.add_metric(values, float(value))  # type: ignore[attr-defined]
        return family


@dataclass(frozen=True)
class Classes:
    """A histogram, in seconds."""

    name: str
    help: str
    labels: tuple[str, ...]
    read: Callable[[Sight], Iterator[tuple[tuple[str, ...], Histogram]]]

    def family(self, sight: Sight) -> Metric:
        family = HistogramMetricFamily(PREFIX + self.name, self.help, labels=self.labels)
        for values, histogram in self.read(sight):
            family.add_metric(values, histogram.cumulative(), histogram.sum)
        return family


def families(sight: Sight) -> Iterator[Metric]:
    """All of them, one after the other."""
    info = InfoMetricFamily(PREFIX + "build", "Which Holdfast this is; the value is 1")
    info.add_metric((), {"version": __version__, "wire": str(VERSION)})
    yield info
    for figure in FIGURES:
        yield figure.family(sight)


# --- how figures are read ---

def _one(read: Callable[[Sight], float | None]) -> Callable[[Sight], Samples]:
    def samples(sight: Sight) -> Samples:
        if (value := read(sight)) is not None:
            yield (), value

    return samples


def _vms(read: Callable[[VmSight], float | None]) -> Callable[[Sight], Samples]:
    """One sample for each VM; none where there is no value."""
    def samples(sight: Sight) -> Samples:
        for vm in sight.vms:
            if (value := read(vm)) is not None:
                yield (vm.name,), value

    return samples


def _causes(read: Callable[[VmSight], dict[str, float]]) -> Callable[[Sight], Samples]:
    def samples(sight: Sight) -> Samples:
        for vm in sight.vms:
            for cause, value in read(vm).items():
                yield (vm.name, cause), value

    return samples


def _is(words: type[Phase] | type[Role], read: Callable[[VmSight], str]) -> Callable[[Sight], Samples]:
    """1 for the word that holds, 0 for the others."""
    def samples(sight: Sight) -> Samples:
        for vm in sight.vms:
            for word in words:
                yield (vm.name, str(word)), float(word == read(vm))

    return samples


def _links(key: str, factor: float = 1.0) -> Callable[[Sight], Samples]:
    def samples(sight: Sight) -> Samples:
        for link in sight.peer["links"]:
            value = link["state"] == "up" if key == "up" else link[key]
            if value is not None:
                yield (str(link["name"]),), value * factor

    return samples


def _hosts(sight: Sight) -> Samples:
    for host, known in sight.health.items():
        for state in State:
            yield (host, str(state)), float(known.state is state)


def _components(sight: Sight) -> Samples:
    for host, known in sight.health.items():
        for component, found in known.components.items():
            for state in State:
                yield (host, component, str(state)), float(found is state)


def _sums(key: str) -> Callable[[Sight], Iterator[tuple[tuple[str, ...], Histogram]]]:
    def histograms(sight: Sight) -> Iterator[tuple[tuple[str, ...], Histogram]]:
        for vm in sight.vms:
            yield (vm.name,), getattr(vm.sums, key)

    return histograms


def _failovers(sight: Sight) -> Iterator[tuple[tuple[str, ...], Histogram]]:
    for (vm, kind), histogram in sight.parts.history.failovers.items():
        yield (vm, str(kind)), histogram


def _moves(sight: Sight) -> Samples:
    for (vm, kind), count in sight.parts.history.counts.items():
        yield (vm, str(kind)), count


def _rules(sight: Sight) -> Samples:
    for vm, drops in sight.rules.drops.items():
        for cause, count in drops.items():
            yield (vm, cause), count


def _lines(sight: Sight) -> Samples:
    for level, count in sight.parts.logs.counts.items():
        yield (level,), count


def _fenced(vm: VmSight) -> dict[str, float]:
    """Frames that were not let out, by the reason why."""
    gate, guard = vm.gate, vm.guard
    if gate is None or guard is None:
        return {}
    return {"early": guard.early_frames, "closed": guard.closed_frames, "expired": guard.expired_frames,
            "unstamped": guard.unstamped_frames, "discarded": gate.dropped_frames, "overflow": gate.overflow_frames,
            "lost": gate.lost_frames, "foreign": gate.foreign_frames}


def _progress(key: str) -> Callable[[VmSight], float | None]:
    def read(vm: VmSight) -> float | None:
        progress = vm.primary.copy.progress if vm.primary is not None and vm.primary.copy is not None else None
        value = progress[key] if progress is not None else None
        return None if value is None else float(value)

    return read


def _replica(key: str) -> Callable[[VmSight], float | None]:
    """Of the disks of a VM together; none of a VM without."""
    return lambda vm: None if vm.disks is None else float(vm.disks[key])


def _each(of: Callable[[VmSight], Iterable[dict[str, Any]]],
          read: Callable[[dict[str, Any]], float | None]) -> Callable[[Sight], Samples]:
    """One sample for each disk, or each volume; none where there is no value."""
    def samples(sight: Sight) -> Samples:
        for vm in sight.vms:
            for one in of(vm):
                if (value := read(one)) is not None:
                    yield (vm.name, str(one["name"])), value

    return samples


_disks = partial(_each, lambda vm: vm.disks["disks"] if vm.disks is not None else ())
_shared = partial(_each, lambda vm: vm.shared)


_VM, _LINK, _DISK, _VOLUME = ("vm",), ("link",), ("vm", "disk"), ("vm", "volume")
FIGURES: tuple[Figure | Classes, ...] = (
    Figure("up", "This service serves; always 1", (), _one(lambda s: 1)),
    # where the VMs are
    Figure("state", "1 for the phase in which the VM is on this host", ("vm", "state"), _is(Phase, lambda v: v.phase)),
    Figure("role", "1 for the role that this host plays for the VM", ("vm", "role"), _is(Role, lambda v: v.role)),
    Figure("speaks", "1 if the VM can be reached on this host", _VM, _vms(lambda v: v.speaks)),
    Figure("term", "Number of the reign that this host knows of", _VM, _vms(lambda v: v.term)),
    Figure("paused", "1 if the operator left the VM unprotected", _VM, _vms(lambda v: v.paused)),
    Figure("moves_total", "What became of the VM on this host, by kind, as in its history", ("vm", "kind"), _moves),
    Classes("failover_seconds", "From what this host noticed until the VM spoke here", ("vm", "kind"), _failovers),
    # epochs
    Figure("epoch_total", "Epochs by what became of them: taken, committed, released here; received as backup",
           ("vm", "outcome"), _causes(lambda v: dict(v.sums.epochs))),
    Classes("pause_seconds", "For how long a checkpoint stopped the VM", _VM, _sums("pause")),
    Classes("commit_seconds", "From the stop of the VM until the backup had the epoch", _VM, _sums("commit")),
    Classes("hold_seconds", "The longest that output of an epoch was held, of epochs with output", _VM, _sums("hold")),
    Figure("epochs_in_flight", "Epochs sent and not yet acknowledged", _VM,
           _vms(lambda v: v.primary.in_flight if v.primary is not None else 0)),
    Figure("last_dirty_pages", "Pages of 4 KiB that the last epoch changed", _VM,
           _vms(lambda v: v.last.pages if v.last is not None else 0)),
    Figure("dirty_pages_total", "Pages of 4 KiB that all epochs changed", _VM, _vms(lambda v: v.sums.pages)),
    Figure("checkpoint_bytes_total", "Bytes of all epochs taken", _VM, _vms(lambda v: v.sums.bytes)),
    Figure("throttled_total", "Times that the VM waited because too much of its output was held, in this reign", _VM,
           _vms(lambda v: v.primary.throttled if v.primary is not None else 0)),
    Figure("resync_done_bytes", "Bytes of the first copy that were sent; absent when none is under way", _VM,
           _vms(_progress("done_bytes"))),
    Figure("resync_total_bytes", "Bytes that the first copy will have, as far as is known", _VM,
           _vms(_progress("total_bytes"))),
    Figure("resync_left_seconds", "Seconds that it will still take", _VM, _vms(_progress("left_s"))),
    # frames
    Figure("packets_held_total", "Frames of the VM that waited for their epoch", ("vm", "cause"),
           _causes(lambda v: {"epoch": v.sums.frames})),
    Figure("packets_released_total", "Frames of the VM let out: their epoch was committed (commit), the VM is alone "
           "(solo), sent once more after a takeover (again)", ("vm", "cause"),
           _causes(lambda v: dict(v.sums.released))),
    Figure("packets_fenced_total", "Frames of the VM that were not let out, by the reason why", ("vm", "cause"),
           _causes(_fenced)),
    Figure("held_frames", "Frames held now", _VM, _vms(lambda v: v.gate.held_frames if v.gate else None)),
    Figure("held_bytes", "Bytes held now", _VM, _vms(lambda v: v.gate.held_bytes if v.gate else None)),
    Figure("held_limit_bytes", "Bytes that may be held", _VM, _vms(lambda v: v.gate.limit_bytes if v.gate else None)),
    Figure("replay_log_bytes", "Received frames that the backup keeps for replay", _VM,
           _vms(lambda v: v.backup.replay.bytes if v.backup is not None else 0)),
    Figure("replay_dropped_frames_total", "Frames that the replay log had no room for, in this reign", _VM,
           _vms(lambda v: v.backup.replay.dropped if v.backup is not None else 0)),
    Figure("replay_unlogged_frames_total", "Frames that the VM received and the backup did not get, in this reign", _VM,
           _vms(lambda v: v.primary.replay.unlogged if v.primary is not None else 0)),
    Figure("rules_dropped_frames_total", "Frames of the VM that the packet filter dropped, by the reason why",
           ("vm", "cause"), _rules),
    # disks
    Figure("disk_size_bytes", "Bytes of the disk; absent while it is not open here", _DISK,
           _disks(lambda d: d["size_bytes"])),
    Figure("disk_recorded_bytes_total", "Bytes that the VM wrote to the disk in the epochs taken here, in this reign",
           _DISK, _disks(lambda d: d["recorded_bytes"])),
    Figure("disk_to_copy_bytes", "Bytes in blocks that were written while there was no replica to follow", _DISK,
           _disks(lambda d: d["to_copy_bytes"])),
    Figure("disk_other_reads_total", "Reads that only the other host's copy could answer, in this reign", _DISK,
           _disks(lambda d: d["other_reads"])),
    Figure("disk_failed", "1 while the image does not take or give what the VM here asks for", _DISK,
           _disks(lambda d: d["trouble"] is not None)),
    Figure("disk_waits", "1 while the VM here stands still for its disk", _DISK, _disks(lambda d: d["vm_waits"])),
    Figure("disk_left", "1 if the VM here goes on with the other host's copy alone", _DISK,
           _disks(lambda d: d["left"])),
    Figure("disk_whole", "1 if the image here is a whole disk, 0 if it is half of a copy or was left; absent while "
           "that is not known", _DISK, _disks(lambda d: d["whole"])),
    Figure("disk_unapplied_bytes", "Bytes that the backup here acknowledged and has not in its images yet", _VM,
           _vms(_replica("unapplied_bytes"))),
    Figure("disk_unapplied_limit_bytes", "Bytes of them from which on it acknowledges later", _VM,
           _vms(_replica("unapplied_limit_bytes"))),
    # shared volumes
    Figure("volume_size_bytes", "Bytes of the volume; absent while it is not open here", _VOLUME,
           _shared(lambda v: v["size_bytes"])),
    Figure("volume_failed", "1 while the volume does not answer this host", _VOLUME,
           _shared(lambda v: v["trouble"] is not None)),
    Figure("volume_withheld_bytes", "Bytes that the VM wrote here and its volumes do not have yet", _VM,
           _vms(lambda v: v.volumes.withheld.size if v.volumes is not None else None)),
    Figure("volume_withheld_limit_bytes", "Bytes of them at which its writes wait", _VM,
           _vms(lambda v: v.volumes.limit if v.volumes is not None else None)),
    # the pair
    Figure("peer_up", "1 if a link to the other host carries messages", (), _one(lambda s: s.peer["state"] == "up")),
    Figure("lease_seconds", "For how long an answer of the peer lets the VMs speak", (),
           _one(lambda s: s.peer["lease_ms"] / 1e3)),
    Figure("silence_seconds", "For how long the peer must be silent to count as down", (),
           _one(lambda s: s.peer["timeout_ms"] / 1e3)),
    Figure("link_up", "1 if the link carries messages", _LINK, _links("up")),
    Figure("link_active", "1 for the link that carries the epochs", _LINK, _links("active")),
    Figure("link_rtt_seconds", "Round trip of the last heartbeat; absent while the link is down", _LINK,
           _links("rtt_us", 1e-6)),
    Figure("link_sent_bytes_total", "Bytes sent over the link", _LINK, _links("sent_bytes")),
    Figure("link_received_bytes_total", "Bytes received over the link", _LINK, _links("received_bytes")),
    Figure("arbiter_reachable", "1 if the arbiter answers", ("kind",),
           lambda s: iter([((str(s.arbiter["kind"]),), float(bool(s.arbiter["reachable"])))])),
    # the hosts
    Figure("host_state", "1 for the state of the host's parts as a whole", ("host", "state"), _hosts),
    Figure("health_state", "1 for the worst state of a component of the host", ("host", "component", "state"),
           _components),
    Figure("drained", "1 if this host is to be left alone", (), _one(lambda s: s.parts.drained())),
    Figure("rules_loaded", "1 if the packet filter rules are in force", ("mode",),
           lambda s: iter([((s.rules.mode,), float(s.rules.loaded))])),
    # the service
    Figure("log_lines_total", "Lines logged, by level", ("level",), _lines),
    Figure("log_lost_lines_total", "Lines that could not be written", (), _one(lambda s: s.parts.logs.lost)),
    Figure("events_lost_total", "Events that slow listeners lost", (), _one(lambda s: s.parts.events.lost)),
)
