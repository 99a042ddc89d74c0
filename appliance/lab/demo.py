# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo: a VM under load outlives two crashes of its host while a client that misses nothing looks on.

    python -m appliance.lab.demo --out build/demo

Writes report.json, timeline.png, client.json (every operation) and details.json into the output directory.
Exit status: 0 every promise kept, 1 one was broken, 130 interrupted; any other: the demo could not be held.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from appliance.errors import TimedOut, Unavailable
from appliance.lab import failover, program, report
from appliance.lab.blueprint import Options
from appliance.lab.driver import Driver
from appliance.lab.failover import Failover, Measured
from appliance.lab.lab import Lab
from appliance.lab.observer import Observer, Seen
from appliance.lab.program import Teller, prepare, taken_down, tell_logs, write_json
from appliance.lab.recording import Recording
from appliance.lab.topology import HOSTS

QUIET_S = 6.0  # undisturbed operation before each crash, and after the last return


@dataclass
class Run:
    """What a demo leaves to be judged."""

    failovers: list[Failover] = field(default_factory=list)
    trouble: list[str] = field(default_factory=list)
    seen: Seen = field(default_factory=Seen)
    recording: Recording | None = None


def hold(lab: Lab, out: Path, tell: Callable[[str], None]) -> Run:
    """Drive the VM of `lab` through a crash of each host. Raises HoldfastError when the client cannot start."""
    run, observer = Run(), Observer(lab)
    with Driver.in_lab(lab, out / "client.json") as driver:
        driver.wait_ready()
        tell("the client drives it: redis INCR and SET, HTTP downloads, an open TCP connection, ping")
        observer.start()
        try:
            crash_both(lab, observer, run, tell)
            tell("the client stops and reads back all it wrote")
            run.recording = driver.stop()
            observer.look()
        finally:
            observer.stop()
    run.seen = observer.seen
    return run


def crash_both(lab: Lab, observer: Observer, run: Run, tell: Callable[[str], None]) -> None:
    """Crash the host that runs the VM, let it return, then the same with the other one."""
    victim = failover.primary(observer)
    for _ in HOSTS:
        time.sleep(QUIET_S)
        tell(f"{victim} crashes: cables dead, service and QEMU killed")
        try:
            done = failover.carry_out(lab, observer, victim)
        except (TimedOut, Unavailable) as error:
            run.trouble.append(f"after the crash of {victim}: {error.message}")
            tell_logs(lab, run.trouble[-1], tell)
            return
        run.failovers.append(done)
        tell(f"{done.survivor} took over; {victim} is back and the VM protected again")
        victim = done.survivor
    time.sleep(QUIET_S)


def conclude(run: Run, out: Path, lab: Lab, tell: Callable[[str], None]) -> list[str]:
    """Write the report and the picture, print the table; returns the promises that were broken."""
    recording, seen = run.recording, run.seen
    if recording is None:
        return [*run.trouble, "the client left no recording"]
    measured = [failover.measure(one, seen, recording) for one in run.failovers]
    end = (max(recording.streams["echo"].start_ns, default=0) + recording.unix_offset_ns) / 1e9
    spans = seen.protected_spans([one.fault_at for one in run.failovers], end)
    document = report.build(measured, seen, recording, spans)
    broken = run.trouble + report.broken_promises(document, recording, len(HOSTS))
    write_json(out / "report.json", document)
    write_json(out / "details.json", details(run, measured, recording, lab, broken))
    from appliance.lab import timeline

    timeline.draw(out / "timeline.png", recording, seen, run.failovers, headline(lab, broken))
    tell(f"written: {out}/report.json, timeline.png")
    print("\n" + report.table(document, measured, recording))
    return broken


def headline(lab: Lab, broken: list[str]) -> str:
    epoch = "adaptive epochs" if lab.options.epoch is None else f"epochs of {lab.options.epoch * 1e3:g} ms"
    size = lab.options.memory >> 20
    return f"Holdfast: one VM of {size} MiB, {epoch}, each host crashed once; {len(broken)} promises broken"


def details(
    run: Run, measured: list[Measured], recording: Recording, lab: Lab, broken: list[str]
) -> dict[str, Any]:
    """What lies behind the report, for whoever looks into a run."""
    return {
        "broken_promises": broken,
        "options": {key: getattr(lab.options, key) for key in lab.options.__struct_fields__},
        "failovers": [asdict(one) for one in run.failovers],
        "measured": [asdict(one) for one in measured],
        "verdict": asdict(recording.verdict),
        "client_timer_late_ms_max": recording.late_ms_max,
        "events": [{"at": h.at, "host": h.host, "event": h.name, **dict(h.more)} for h in run.seen.events()],
    }


def demonstrate(options: Options, out: Path, tell: Callable[[str], None]) -> list[str]:
    """The whole demo, lab included; the lab is gone afterwards, whatever happens."""
    prepare(out, ("report.json", "details.json", "timeline.png", "client.json"))
    with taken_down(Lab.up(options, progress=tell), out, tell) as lab:
        return conclude(hold(lab, out, tell), out, lab, tell)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo", description="A VM outlives a crash of each of its two hosts.")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), metavar="DIR", help="results go here")
    parser.add_argument("--name", default="demo", help="of the lab")
    parser.add_argument("--epoch", type=float, metavar="MS", help="epochs of this fixed length; adaptive if not given")
    parser.add_argument("--qemu", default=Options().qemu, metavar="PATH")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    epoch = None if args.epoch is None else args.epoch / 1e3
    options = Options(name=args.name, epoch=epoch, qemu=args.qemu)
    return program.run("demo", lambda: program.outcome(demonstrate(options, args.out, Teller())))


if __name__ == "__main__":
    sys.exit(main())
