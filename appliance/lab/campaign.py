# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault campaign: one fault after another on a protected pair under load, and a judgement after each.

    python -m appliance.lab.campaign --count 300 --seed 7 --out build/campaign

Writes report.json (schema holdfast.campaign/1) and rounds.json, both after every round, and what is left of each
round that was not survived below failures/. Exit status: 0 every fault survived, 1 one was not, 130 interrupted;
any other: the campaign could not be held.
"""

from __future__ import annotations

import argparse
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from appliance.errors import HoldfastError, UsageError
from appliance.lab import campaign_report as report
from appliance.lab import program
from appliance.lab.blueprint import DISK_GUEST_MEMORY, Options
from appliance.lab.campaign_faults import Play
from appliance.lab.campaign_judge import Speech, turns, voices
from appliance.lab.campaign_kinds import KINDS, Kind
from appliance.lab.campaign_plan import Round, rounds
from appliance.lab.campaign_report import Outcome
from appliance.lab.program import FAILURES, Teller, heed, prepare, write_json
from appliance.lab.stage import Stage
from appliance.lab.streams import WrongAnswer
from appliance.lab.topology import HOSTS
from appliance.lab.volume import Volume

GUESTS = {
    "memory": Options(),
    "disk": Options(guest="disk", memory=DISK_GUEST_MEMORY, disk_faults=True),
    "volume": Options(guest="disk", memory=DISK_GUEST_MEMORY, volume=Volume("iscsi", guest=True)),
}
"""By what --guest asks for."""
MOMENT_S = (0.1, 1.0)  # undisturbed operation before the fault
PROTECTED_S = 30.0  # for the pair to be protected again by itself, once all is healed


class Campaign:
    """A series of rounds, on one lab as long as they are survived."""

    def __init__(
        self, options: Options, out: Path, kinds: Mapping[str, Kind], *, repeat: str = "", keep_failed: bool = False
    ) -> None:
        """repeat: the command that plays rounds of the same seed, to be told with those that failed."""
        self.options, self.out, self.kinds, self.repeat = options, out, kinds, repeat
        self.outcomes: list[Outcome] = []
        self.kept: str | None = None
        self._keep_failed = keep_failed
        self._stage: Stage | None = None
        self._speech = Speech()
        self._labs = 0

    def hold(self, plan: Sequence[Round], tell: Callable[[str], None]) -> None:
        """Play every round; the lab is gone afterwards. Raises HoldfastError when there can be no lab."""
        try:
            for one in plan:
                outcome = self._round(one)
                self.outcomes.append(outcome)
                self._write(one.seed)
                tell(report.line(outcome, plan[-1].number))
                if not outcome.survived:
                    tell(f"      evidence: {self._evidence(outcome)}; again: {self.repeat} ROUND={outcome.number}")
        finally:
            heed(signal.SIG_IGN)  # a late Ctrl-C must not leave half a lab behind
            if self._stage is not None:
                self._stage.down()

    def _write(self, seed: int) -> None:
        write_json(self.out / "report.json", report.build(seed, self.outcomes))
        write_json(self.out / "rounds.json", {"rounds": [asdict(outcome) for outcome in self.outcomes]})

    def _ready(self) -> Stage:
        """A protected pair with a busy client: the one there is, else a new one."""
        if self._stage is None:
            self._labs += 1
            self._speech = Speech()
            named = msgspec.structs.replace(self.options, name=f"{self.options.name}-{self._labs}")
            self._stage = Stage.up(named)
        return self._stage

    def _round(self, one: Round) -> Outcome:
        stage, begun = self._ready(), time.monotonic()
        outcome = Outcome(one.number, one.kind, one.seed)
        chance = one.chance()
        play = Play(stage, chance, self._speech, "", "", outcome.story)
        term = 0
        try:
            play.primary, play.backup = stage.protected()
            stage.goes_on()  # the primary has spoken
            term = stage.term()
            play.wait(*MOMENT_S)
            self.kinds[one.kind].play(play)
            self._protected_again(play, outcome)
        except FAILURES as error:
            outcome.problems.append(error.message if isinstance(error, HoldfastError) else str(error))
        self._judge(play, outcome, term)
        self._speech = play.speech
        outcome.seconds = round(time.monotonic() - begun, 1)
        if not outcome.survived:
            self._give_up(play, outcome)
        return outcome

    def _protected_again(self, play: Play, outcome: Outcome) -> None:
        play.healed = play.healed or time.monotonic()
        try:
            play.stage.protected(PROTECTED_S)
        except HoldfastError:
            outcome.not_reprotected = 1
            raise
        play.stage.goes_on()
        # A VM that started afresh has a client that never saw the fault: the outage is the gap.
        outcome.gap_ms = ((play.healed - play.begun) * 1e3 if play.afresh
                          else play.stage.client.longest_wait_ms(play.begun, play.healed))  # fmt: skip

    def _judge(self, play: Play, outcome: Outcome, term: int) -> None:
        """Add whatever the wire, the client and the guards have to say against this round."""
        stage = play.stage
        try:
            early = play.speech.early
            play.listen()
            outcome.early_frames = play.speech.early - (0 if play.afresh else early)
            raised = None if play.detour else stage.term() - term
            both = voices(turns(play.frames), raised)
            outcome.two_speakers = len(both)
            outcome.problems += [*both, *(play.speech.findings if outcome.early_frames else [])]
            outcome.problems += self._guards(stage)
        except FAILURES as error:
            outcome.problems.append(f"the wire cannot be judged: {error}")
        try:
            outcome.lost_acked_writes = stage.client.lost() + play.lost
            self._database(play, outcome)
        except (*FAILURES, ValueError, WrongAnswer) as error:
            outcome.problems.append(f"what was written cannot be read back: {error}")
        outcome.resets += stage.client.resets()
        outcome.problems += stage.client.problems()[:10]
        if outcome.lost_acked_writes:
            outcome.problems.append(f"{outcome.lost_acked_writes} acknowledged writes are lost")

    @staticmethod
    def _database(play: Play, outcome: Outcome) -> None:
        """What the database and its disk have to say, in a lab that has one."""
        database = play.stage.database
        if database is None:
            return
        outcome.resets += database.resets()
        outcome.problems += database.problems()[:10]
        found = database.audit()
        outcome.lost_acked_writes += found.lost + found.twice + found.wrong
        outcome.problems += found.problems
        if not outcome.not_reprotected:
            outcome.problems += database.compare(play.stage.protected()[0])

    @staticmethod
    def _guards(stage: Stage) -> list[str]:
        found = []
        for host in HOSTS:
            guard = stage.vm(host).get("guard") or {}
            if stopped := int(guard.get("early_frames", 0)) + int(guard.get("unstamped_frames", 0)):
                found.append(f"the guard of {host} had to stop {stopped} frames")
        return found

    def _evidence(self, outcome: Outcome) -> Path:
        return self.out / "failures" / f"round-{outcome.number:04}"

    def _give_up(self, play: Play, outcome: Outcome) -> None:
        """Keep all evidence of a round that was not survived; the next one gets a new lab."""
        stage, self._stage = play.stage, None
        where = self._evidence(outcome)
        where.mkdir(parents=True, exist_ok=True)
        for log in stage.lab.directory.glob("*/service.log"):
            shutil.copyfile(log, where / f"{log.parent.name}.log")
        write_json(where / "evidence.json", {
            "outcome": asdict(outcome),
            "repeat": f"{self.repeat} ROUND={outcome.number}",
            "turns": [asdict(turn) for turn in turns(play.frames)],
            "status": {host: stage.lab.host_status(host) for host in HOSTS},
            "log_tail": {host: stage.lab.log_tail(host, 60) for host in HOSTS},
        })  # fmt: skip
        if self._keep_failed and self.kept is None:  # one: those that run on slow down all that follows
            stage.leave()
            self.kept = stage.lab.name
        else:
            stage.down()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="campaign", description="One fault after another on a pair under load.")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="rounds (300)")
    parser.add_argument("--seed", type=int, help="the same seed gives the same rounds; by chance if not given")
    parser.add_argument("--round", type=int, metavar="K", help="play this round of the seed alone")
    parser.add_argument("--only", metavar="KIND,...", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--out", type=Path, default=Path("build/campaign"), metavar="DIR", help="results go here")
    parser.add_argument("--guest", choices=tuple(GUESTS), default="memory",
                        help="disk: a database on a disk that is replicated, and can fail; volume: on a volume that "
                             "the hosts share (memory)")
    parser.add_argument("--name", default="campaign", help="the labs are named after it")
    parser.add_argument("--keep-failed", action="store_true", help="leave the first lab that failed, to look into it")
    args = parser.parse_args(argv)
    if args.count < 1 or (args.round is not None and args.round < 1):
        parser.error("rounds are counted from 1")
    return args


def chosen(only: str | None, options: Options) -> dict[str, Kind]:
    """The kinds of fault to play on a lab of these options. Raises UsageError."""
    witness = options.arbiter == "witness"
    storage = {"", "disk" if options.all_disks() else "", "volume" if options.volume is not None else ""}
    possible = {name: kind for name, kind in KINDS.items()
                if (witness or not kind.arbitrated) and kind.storage in storage}  # fmt: skip
    names = list(possible) if only is None else only.split(",")
    for name in names:
        if name not in possible:
            raise UsageError(f"there is no fault {name!r} in this lab", f"known are {', '.join(possible)}")
    return {name: possible[name] for name in names}


def plan(args: argparse.Namespace, seed: int, kinds: Mapping[str, Kind]) -> list[Round]:
    last = args.count if args.round is None else args.round
    made = rounds(seed, last, {name: kind.weight for name, kind in kinds.items()})
    return made if args.round is None else made[-1:]


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    return program.run("campaign", lambda: play(args))


def play(args: argparse.Namespace) -> int:
    """The whole campaign. Raises HoldfastError or OSError when it cannot be held."""
    sys.setswitchinterval(0.0005)  # a thread that computes must not make the client's waits look longer
    seed = secrets.randbelow(1 << 31) if args.seed is None else args.seed
    shutil.rmtree(args.out / "failures", ignore_errors=True)
    prepare(args.out, ("report.json", "rounds.json"))
    tell = Teller()
    options = msgspec.structs.replace(GUESTS[args.guest], name=args.name)
    kinds = chosen(args.only, options)
    tell(f"seed {seed}")
    more = [f"--guest {args.guest}"] * (args.guest != "memory") + [f"--only {args.only}"] * (args.only is not None)
    repeat = f"make campaign SEED={seed}" + (f" ARGS='{' '.join(more)}'" if more else "")
    campaign = Campaign(options, args.out, kinds, repeat=repeat, keep_failed=args.keep_failed)
    campaign.hold(plan(args, seed, kinds), tell)
    print("\n" + report.table(report.build(seed, campaign.outcomes)))
    if campaign.kept is not None:
        print(f"kept: holdfast lab status --name {campaign.kept}; holdfast lab down --name {campaign.kept}")
    return 0 if all(outcome.survived for outcome in campaign.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
