# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo of the disk: a database outlives crash after crash of its host, and then the loss of power of both hosts.

    python -m appliance.lab.demo_disk --out build/demo-disk

After each crash, with the clients going on: every transaction that was acknowledged is there exactly once, PostgreSQL's
own checks find nothing, the images of both hosts are the same at a quiet moment, and the file system on them is clean.
At the end both hosts lose power at once: what starts afresh has everything that was acknowledged.

Writes report.json (schema holdfast.demo/1 with a `disk` section), details.json, client.json, ledger.txt and the logs
into the output directory. Exit status: 0 every promise kept, 1 one was broken, 130 interrupted; any other: the demo
could not be held.
"""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random

from appliance.errors import HoldfastError, TimedOut, Unavailable
from appliance.lab import disk_report, failover, faults, program, report
from appliance.lab.blueprint import DISK_GUEST_MEMORY, Options
from appliance.lab.demo import Run
from appliance.lab.disk_report import Inspection
from appliance.lab.driver import Driver
from appliance.lab.inspector import Inspector
from appliance.lab.lab import Lab
from appliance.lab.ledger import Ledger
from appliance.lab.observer import Observer
from appliance.lab.program import FAILURES, Teller, prepare, taken_down, tell_logs, write_json
from appliance.lab.streams import WrongAnswer
from appliance.lab.topology import HOSTS
from appliance.lab.writers import Writers

CALM_S = (1.0, 4.0)  # protected, before the next crash: a random time between these
AWAY_S = 1.0  # a crashed host comes back so long after the other took over
LAST_S = 3.0  # of transfers before the power fails
FRESH_S = 120.0  # for a VM that starts afresh to be protected, its guest booted and its database recovered
STREAMS = "incr,set,echo"
LEFTOVERS = ("report.json", "details.json", "client.json", "ledger.txt")


@dataclass
class Chosen:
    """What can be chosen about the demo."""

    options: Options
    crashes: int
    clients: int
    seed: int


@dataclass
class DiskRun(Run):
    """What a demo of the disk leaves to be judged."""

    inspections: list[Inspection] = field(default_factory=list)


def hold(lab: Lab, chosen: Chosen, out: Path, tell: Callable[[str], None]) -> DiskRun:
    """The whole course of events on `lab`. Raises HoldfastError when the clients cannot start."""
    run, observer, ledger = DiskRun(), Observer(lab), out / "ledger.txt"
    Ledger(ledger).close()  # so that it is there
    inspector = Inspector(lab, ledger)
    with contextlib.closing(inspector.session()) as session:
        inspector.bank.create(session)
    more = ["--transfers", str(chosen.clients), "--bank", inspector.bank.name, "--ledger", str(ledger.absolute())]
    with Driver.in_lab(lab, out / "client.json", streams=STREAMS, more=more) as driver:
        driver.wait_ready()
        tell(f"{chosen.clients} clients move money in PostgreSQL; redis INCR and SET, on the disk before each answer")
        observer.start()
        try:
            if crash_in_turn(inspector, observer, run, chosen, tell):
                tell("the clients stop; redis is read back, and PostgreSQL from its disk")
                run.recording = driver.stop()
                last_look(inspector, observer, run)
                lose_power(inspector, run, chosen, tell)
            observer.look()
        except FAILURES as error:
            trouble(lab, run, error, tell)
        except WrongAnswer as error:
            trouble(lab, run, OSError(str(error)), tell)
        finally:
            observer.stop()
    run.seen = observer.seen
    return run


def trouble(lab: Lab, run: Run, error: HoldfastError | OSError, tell: Callable[[str], None]) -> None:
    run.trouble.append(error.message if isinstance(error, HoldfastError) else str(error))
    tell_logs(lab, run.trouble[-1], tell)


def crash_in_turn(
    inspector: Inspector, observer: Observer, run: DiskRun, chosen: Chosen, tell: Callable[[str], None]
) -> bool:
    """Crash the host that runs the VM, again and again, and look each time. False when one did not go well."""
    lab, chance = inspector.lab, Random(chosen.seed)
    for number in range(1, chosen.crashes + 1):
        time.sleep(chance.uniform(*CALM_S))
        victim = failover.primary(observer)
        try:
            done = failover.carry_out(lab, observer, victim, away_s=AWAY_S)
        except (TimedOut, Unavailable) as error:
            trouble(lab, run, HoldfastError(f"crash {number}, of {victim}: {error.message}", error.hint), tell)
            return False
        run.failovers.append(done)
        found = inspector.inspect(f"crash {number}, of {victim}", done.survivor)
        run.inspections.append(found)
        tell(f"crash {number:>2} of {victim:<5}  {found.audit.transactions:>6} transactions there, each once; "
             f"{verdict(found)}")  # fmt: skip
    return True


def verdict(found: Inspection) -> str:
    if found.problems:
        return f"BROKEN: {'; '.join(found.problems)}"
    return "database sound, images identical, file system clean"


def last_look(inspector: Inspector, observer: Observer, run: DiskRun) -> None:
    """With the clients at rest: all of the database as it is on the disk."""
    found = inspector.inspect("the last transaction", failover.primary(observer))
    found.bad_checksums = inspector.read_all_back()
    run.inspections.append(found)


def lose_power(inspector: Inspector, run: DiskRun, chosen: Chosen, tell: Callable[[str], None]) -> None:
    """Both hosts crash while clients write; the VM starts afresh from the disk of the one that was active last."""
    lab = inspector.lab
    keys = inspector.redis_counts()
    ledger = Ledger(inspector.audit.path)
    writers = Writers(lab, inspector.bank, ledger, chosen.clients, chosen.clients)  # numbered after those before
    try:
        time.sleep(LAST_S)
        faults.power_loss(lab.name)
        tell("both hosts lose power")
    finally:
        writers.close()
    for host in HOSTS:
        lab.heal(host)
    lab.wait_protected(FRESH_S)
    lab.wait_guest(FRESH_S)
    running = next(host for host in HOSTS if lab.status()["hosts"][host]["role"] == "primary")
    found = inspector.inspect("the loss of power", running)
    if inspector.redis_counts() != keys:
        found.more.append(f"redis had {keys} and has {inspector.redis_counts()}")
    found.bad_checksums = inspector.read_all_back()
    run.inspections.append(found)
    tell(f"{running} started the VM afresh: {found.audit.transactions} transactions there, each once; {verdict(found)}")


def conclude(run: DiskRun, chosen: Chosen, out: Path, tell: Callable[[str], None]) -> list[str]:
    """Write the report, print the table; returns the promises that were broken."""
    recording, seen = run.recording, run.seen
    if recording is None:
        return [*run.trouble, *(what for one in run.inspections for what in one.problems), "the demo broke off"]
    measured = [failover.measure(one, seen, recording) for one in run.failovers]
    end = (max(recording.streams["echo"].start_ns, default=0) + recording.unix_offset_ns) / 1e9
    spans = seen.protected_spans([one.fault_at for one in run.failovers], end)
    document = report.build(measured, seen, recording, spans)
    document["disk"] = {"crashes": len(run.failovers), "seed": chosen.seed, **disk_report.section(run.inspections)}
    broken = run.trouble + report.broken_promises(document, recording, chosen.crashes)
    broken += disk_report.broken_promises(run.inspections, chosen.crashes + 2)
    write_json(out / "report.json", document)
    write_json(out / "details.json", {
        "broken_promises": broken,
        "options": {key: str(getattr(chosen.options, key)) for key in chosen.options.__struct_fields__},
        "failovers": [asdict(one) for one in run.failovers],
        "measured": [asdict(one) for one in measured],
        "events": [{"at": h.at, "host": h.host, "event": h.name, **dict(h.more)} for h in seen.events()],
    })  # fmt: skip
    tell(f"written: {out}/report.json")
    print("\n" + disk_report.table(document, measured))
    return broken


def demonstrate(chosen: Chosen, out: Path, tell: Callable[[str], None]) -> list[str]:
    """The whole demo, lab included; the lab is gone afterwards, whatever happens."""
    prepare(out, LEFTOVERS)
    with taken_down(Lab.up(chosen.options, timeout=FRESH_S, progress=tell), out, tell) as lab:
        return conclude(hold(lab, chosen, out, tell), chosen, out, tell)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="demo-disk", description="A database outlives crashes of its hosts.")
    parser.add_argument("--out", type=Path, default=Path("build/demo-disk"), metavar="DIR", help="results go here")
    parser.add_argument("--name", default="demo-disk", help="of the lab")
    parser.add_argument("--crashes", type=int, default=20, metavar="N", help="hosts in turn (20)")
    parser.add_argument("--clients", type=int, default=4, metavar="N", help="of the database (4)")
    parser.add_argument("--seed", type=int, help="of the moments; by chance if not given")
    parser.add_argument("--qemu", default=Options().qemu, metavar="PATH")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    options = Options(name=args.name, guest="disk", memory=DISK_GUEST_MEMORY, qemu=args.qemu)
    seed = secrets.randbelow(1 << 31) if args.seed is None else args.seed
    chosen = Chosen(options, args.crashes, args.clients, seed)
    return program.run("demo-disk", lambda: program.outcome(demonstrate(chosen, args.out, Teller())))


if __name__ == "__main__":
    sys.exit(main())
