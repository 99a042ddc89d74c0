# SPDX-License-Identifier: GPL-2.0-or-later
"""The client that drives a VM without pause and judges what it saw; runs inside the client's namespace.

    python -m appliance.lab.workload --host 10.77.0.10 --sha256 HEX --out FILE

Prints one JSON line `{"ready": ...}` when every stream had its first answer, then runs until SIGTERM, the end of
its standard input, or --duration. Then reads back all it wrote, writes a recording and prints the verdict.
Exit status: 0 clean, 1 something was lost, reset or wrong, 69 the streams did not start.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.lab import postgres
from appliance.lab.judge import CounterJudge, WriteJudge
from appliance.lab.ledger import Ledger
from appliance.lab.ping import Ping
from appliance.lab.recording import Recording, Verdict
from appliance.lab.streams import TIMEOUT_S, Download, Echo, Incr, Redis, Set, Stream, WrongAnswer
from appliance.lab.transfers import Bank, Transfer

ALL = ("incr", "set", "download", "echo", "ping")
UNAVAILABLE = 69
VERIFY_S = 60.0
BATCH = 200


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workload", description="Drive a server and judge its answers.")
    parser.add_argument("--host", default="10.77.0.10", help="IPv4 address of the VM")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the recording is written here")
    parser.add_argument("--streams", default=",".join(ALL), help="which ones, comma between (default: all)")
    parser.add_argument("--redis-port", type=int, default=6379)
    parser.add_argument("--http-port", type=int, default=80)
    parser.add_argument("--echo-port", type=int, default=7)
    parser.add_argument("--path", default="/blob.bin", help="the file to download")
    parser.add_argument("--sha256", default="", metavar="HEX", help="its digest; needed for downloads")
    parser.add_argument("--download-every", type=float, metavar="SECONDS", help="least time between two starts")
    parser.add_argument("--echo-every", type=float, metavar="SECONDS", help="least time between two messages")
    parser.add_argument("--transfers", type=int, default=0, metavar="N", help="clients of a bank in PostgreSQL")
    parser.add_argument("--bank", default="bank", metavar="NAME", help="of its tables, which must be there")
    parser.add_argument("--postgres-port", type=int, default=postgres.PORT)
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="what the bank acknowledges is added to it")
    parser.add_argument("--duration", type=float, metavar="SECONDS", help="stop by itself; stdin is ignored then")
    parser.add_argument("--ready-timeout", type=float, default=30.0, metavar="SECONDS")
    options = parser.parse_args(argv)
    options.streams = options.streams.split(",")
    unknown = set(options.streams) - set(ALL)
    if unknown:
        parser.error(f"no such stream: {', '.join(sorted(unknown))} (there are {', '.join(ALL)})")
    if options.transfers and options.ledger is None:
        parser.error("transfers need a --ledger")
    if "download" in options.streams and len(options.sha256) != 64:
        parser.error("downloads need --sha256 with 64 hex digits, or leave them out with --streams")
    return options


def make_streams(options: argparse.Namespace, run: str) -> dict[str, Stream]:
    redis = (options.host, options.redis_port)
    streams: dict[str, Stream] = {}
    for name in options.streams:
        if name == "incr":
            streams[name] = Incr(redis, run)
        elif name == "set":
            streams[name] = Set(redis, run)
        elif name == "download":
            address = (options.host, options.http_port)
            streams[name] = Download(address, options.path, options.sha256.lower())
            streams[name].pace_s = options.download_every or Download.pace_s
        elif name == "echo":
            streams[name] = Echo((options.host, options.echo_port))
            streams[name].pace_s = Echo.pace_s if options.echo_every is None else options.echo_every
        else:
            streams[name] = Ping(options.host)
    if options.transfers:
        bank, ledger = Bank(options.bank), Ledger(options.ledger)
        for client in range(options.transfers):
            transfer = Transfer((options.host, options.postgres_port), bank, client, ledger)
            streams[transfer.name] = transfer
    return streams


def wait_ready(streams: dict[str, Stream], timeout: float) -> list[str]:
    """Wait for the first answer of every stream; returns the names of those without one."""
    deadline = time.monotonic() + timeout
    return [
        name
        for name, stream in streams.items()
        if not stream.answered.wait(max(0.0, deadline - time.monotonic()))
    ]


class StopSignal:
    """Tells when to stop: SIGTERM, SIGINT, or the end of standard input (whoever started us is gone)."""

    def __init__(self, *, stdin: bool) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, wake = socket.socketpair()
        wake.setblocking(False)
        self._keep = wake
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # the wake-up descriptor tells
        self._selector.register(self._wake, selectors.EVENT_READ)
        if stdin:
            try:
                self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            except (OSError, ValueError):  # a plain file or a closed one has no end to wait for
                pass

    def wait(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            for key, _ in self._selector.select(left):
                if key.fileobj is self._wake or not os.read(key.fd, 4096):
                    return
            if left == 0.0:
                return


def verify(address: tuple[str, int], incr: Incr | None, writes: Set | None, verdict: Verdict) -> None:
    """Read back every key and the counter over a new connection, again and again until VERIFY_S are over.

    Sets verdict.verified, or a problem that says why it could not be done.
    """
    deadline = time.monotonic() + VERIFY_S
    while True:
        try:
            redis = Redis(address)
            try:
                counter = redis.command("GET", incr.key) if incr else None
                values = read_back(redis, writes.judge) if writes else []
            finally:
                redis.close()
            break
        except (OSError, WrongAnswer) as error:
            if time.monotonic() > deadline:
                verdict.problems.append(f"what was written could not be read back: {error}")
                return
            time.sleep(0.2)
    if incr:
        incr.judge.final(int(counter) if isinstance(counter, str) and counter.isdigit() else 0)
    for index, value in values:
        assert writes is not None
        writes.judge.read_back(index, value)
    verdict.verified = True


def read_back(redis: Redis, judge: WriteJudge) -> list[tuple[int, str | None]]:
    """Every index that was ever written, with the value it has now. Raises OSError, WrongAnswer."""
    indices = sorted({*judge.acknowledged, *judge.unanswered})
    found: list[tuple[int, str | None]] = []
    for begin in range(0, len(indices), BATCH):
        batch = indices[begin : begin + BATCH]
        values = redis.command("MGET", *(judge.key(index) for index in batch))
        if not isinstance(values, list) or len(values) != len(batch):
            raise WrongAnswer(f"MGET of {len(batch)} keys answered {str(values)[:60]}")
        texts = [None if value is None else str(value) for value in values]
        found += zip(batch, texts, strict=True)
    return found


def judge_run(streams: dict[str, Stream], redis: tuple[str, int]) -> Verdict:
    """The verdict on streams that have stopped."""
    verdict = Verdict()
    incr, writes = streams.get("incr"), streams.get("set")
    incr = incr if isinstance(incr, Incr) else None
    writes = writes if isinstance(writes, Set) else None
    if incr or writes:
        verify(redis, incr, writes, verdict)
    else:
        verdict.verified = True  # nothing was written
    for name, stream in streams.items():
        verdict.requests += stream.requests
        verdict.wrong_answers += stream.wrong_answers
        for broken in stream.record.broken:
            verdict.resets += broken.kind == "reset"
            verdict.timeouts += broken.kind == "timeout"
            verdict.problems.append(f"{name}: the connection broke ({broken.kind}): {broken.cause}")
        if stream.wrong_answers:
            verdict.problems.append(f"{name}: {stream.wrong_answers} wrong answers: {stream.record.faults[:3]}")
        if isinstance(stream, Download):
            verdict.corrupt_downloads += stream.corrupt
        if stream.thread.is_alive():
            verdict.problems.append(f"{name}: still waits for an answer after {TIMEOUT_S:g} s")
    judges: list[CounterJudge | WriteJudge] = [stream.judge for stream in (incr, writes) if stream]
    for judge in judges:
        verdict.lost_acked_writes += judge.lost
        verdict.problems += judge.problems
    if incr:
        verdict.acked_writes += incr.judge.acknowledged
    if writes:
        verdict.acked_writes += len(writes.judge.acknowledged)
    return verdict


def say(**fields: object) -> None:
    try:
        print(json.dumps(fields), flush=True)
    except BrokenPipeError:  # nobody listens any more: the recording still counts
        pass


def main(argv: Sequence[str] | None = None) -> int:
    options = arguments(argv)
    sys.setswitchinterval(0.0005)  # a thread that computes must not make the others' latencies look worse
    run = f"hf-{secrets.token_hex(4)}"
    unix_offset = time.time_ns() - time.monotonic_ns()
    stop = StopSignal(stdin=options.duration is None)
    streams = make_streams(options, run)
    for stream in streams.values():
        stream.thread.start()
    silent = wait_ready(streams, options.ready_timeout)
    if silent:
        reasons = {name: streams[name].record.faults[-1:] for name in silent}
        say(ready=False, silent=silent, reasons=reasons)
        return UNAVAILABLE
    say(ready=True, run=run)
    stop.wait(options.duration)
    for stream in streams.values():
        stream.stop.set()
    for stream in streams.values():
        stream.thread.join(TIMEOUT_S + 1)
    verdict = judge_run(streams, (options.host, options.redis_port))
    ping = streams.get("ping")
    late_ms = ping.late_ns_max / 1e6 if isinstance(ping, Ping) else 0.0
    records = {name: stream.record for name, stream in streams.items()}
    Recording(run, unix_offset, records, verdict, late_ms).save(options.out)
    say(done=True, requests=verdict.requests, clean=verdict.clean, problems=verdict.problems[:20])
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
