# SPDX-License-Identifier: GPL-2.0-or-later
"""What a client saw: every operation of every stream with its time and latency, and the verdict.

Written by the workload when it stops, read by the demo, the benches and the timeline. Times are nanoseconds
of CLOCK_MONOTONIC, which all namespaces of a machine share; `unix_offset_ns` turns them into unix time.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SCHEMA = "holdfast.workload/1"


@dataclass
class Broken:
    """A connection that ended without our doing; `kind` is "reset" (RST or EOF) or "timeout"."""

    at_ns: int
    kind: str
    cause: str


@dataclass
class StreamRecord:
    """One stream: operation i was started at start_ns[i] and answered latency_ns[i] later."""

    name: str
    start_ns: list[int] = field(default_factory=list)
    latency_ns: list[int] = field(default_factory=list)
    broken: list[Broken] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # wrong answers and refused connections, bounded

    def latencies_ms(self, begin_ns: int = 0, end_ns: int | None = None) -> list[float]:
        """Latencies in ms of the operations started in [begin_ns, end_ns)."""
        pairs = zip(self.start_ns, self.latency_ns, strict=True)
        return [lat / 1e6 for at, lat in pairs if at >= begin_ns and (end_ns is None or at < end_ns)]

    def longest_stall_ms(self, begin_ns: int, end_ns: int) -> float:
        """The longest time in ms that the client waited, of all waits that touch [begin_ns, end_ns].

        A wait is an operation from its start to its answer. Where the connection broke, it lasts until the
        first answer after that. 0.0 when nothing was asked in that time.
        """
        spans = list(zip(self.start_ns, self.latency_ns, strict=True))
        for broken in self.broken:
            before = [at + lat for at, lat in spans if at + lat <= broken.at_ns]
            after = [at + lat for at, lat in spans if at >= broken.at_ns]
            begin = max(before, default=broken.at_ns)
            spans.append((begin, min(after, default=end_ns) - begin))
        touching = [lat for at, lat in spans if at <= end_ns and at + lat >= begin_ns]
        return max(touching, default=0) / 1e6


@dataclass
class Verdict:
    """The judgement on a whole run. `problems` says every finding in words; empty means clean."""

    requests: int = 0
    resets: int = 0
    timeouts: int = 0
    lost_acked_writes: int = 0
    wrong_answers: int = 0
    corrupt_downloads: int = 0
    acked_writes: int = 0
    verified: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.verified and not self.problems


@dataclass
class Recording:
    run: str
    unix_offset_ns: int
    streams: dict[str, StreamRecord]
    verdict: Verdict
    late_ms_max: float = 0.0  # how late the workload's own 20 ms timer ran at worst: the machine's noise

    def monotonic_ns(self, unix: float) -> int:
        """The monotonic time in ns of a unix time in seconds."""
        return round(unix * 1e9) - self.unix_offset_ns

    def save(self, path: Path) -> None:
        """Write to `path`, whole or not at all. Raises OSError."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":")))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> Recording:
        """Read what save() wrote. Raises OSError, and ValueError for anything else than a recording."""
        data: dict[str, Any] = json.loads(path.read_text())
        if data.get("schema") != SCHEMA:
            raise ValueError(f"{path} is no {SCHEMA} but {data.get('schema')!r}")
        streams = {}
        for name, stream in data["streams"].items():
            stream["broken"] = [Broken(**broken) for broken in stream["broken"]]
            streams[name] = StreamRecord(**stream)
        verdict = Verdict(**data["verdict"])
        return cls(data["run"], data["unix_offset_ns"], streams, verdict, data["late_ms_max"])
