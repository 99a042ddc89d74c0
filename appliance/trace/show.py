# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast trace`: from the command line to events that are printed or written."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from appliance.cli.call import Call
from appliance.errors import NoPermission, Unavailable, UsageError
from appliance.exits import Exit
from appliance.trace import capture, notes
from appliance.trace.event import ONCE, Event, Frame, Point
from appliance.trace.expression import Expression
from appliance.trace.select import Select
from appliance.trace.session import Session


class Output(Protocol):
    """Where events go."""

    def begin(self, begin: notes.Begin) -> None: ...
    def event(self, event: Event) -> None: ...
    def end(self, end: notes.End) -> None: ...
    def flush(self) -> None: ...


def live(call: Call, vm: str, select: Select, expression: Expression | None, *, frames: bool = True) -> Session:
    """A trace of this host's service that tells what `select` needs. Raises HoldfastError or BpfError."""
    in_kernel = expression is not None and expression.fits
    words: dict[str, Any] = {"vm": vm or None, "frames": frames}
    if frames:
        run_there = expression.instructions if expression is not None and in_kernel else []
        words |= {"points": select.kernel_points(), "snap": getattr(call.args, "snap", 128),
                  "ring_bytes": getattr(call.args, "buffer", 16 << 20), "filter": run_there}
    return Session(lambda **asked: call.stream(**asked), select.points,
                   kernel=getattr(call.args, "kernel", False), **words)


def split(call: Call, words: Sequence[str], vms: Sequence[str] | None = None) -> tuple[str, Expression | None]:
    """The VM that the words begin with ("" for all) and the filter that the rest is. Raises HoldfastError."""
    if not words:
        return "", None
    if vms is None:
        vms = sorted(call.ask("status", timeout=5.0).get("vms", {}))
    vm, rest = (words[0], words[1:]) if words[0] in vms else ("", words)
    try:
        return vm, Expression(rest) if rest else None
    except UsageError as error:
        raise UsageError(error.message, f"{error.hint}; VMs are {', '.join(vms)}") from None


def place(expression: Expression | None) -> str:
    """Where the filter is run, for people."""
    if expression is None:
        return "every frame"
    where = "run in the kernel" if expression.fits else "too long for the kernel: run here, on what is captured"
    return f"filter {expression.text!r}: {len(expression.instructions)} instructions, {where}"


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends a trace as Ctrl-C does: in good order."""
    try:
        before = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not in the main thread: somebody else has the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def trace(call: Call) -> int:
    """The verb."""
    args = call.args
    if args.read:
        return _replay(call)
    vm, expression = split(call, args.words)
    select = _select(call, vm, expression)
    with live(call, vm, select, expression) as session:
        output = _output(call, [session.begin])
        if args.ready_fd is not None:
            with contextlib.suppress(OSError):
                os.write(args.ready_fd, b"ready\n")
                os.close(args.ready_fd)
        call.screen.note(f"tracing {', '.join(one.vm for one in session.begin.vms)} on {session.begin.host}; "
                         f"{place(expression)}")
        return _run(call, session, select, output)


def _run(call: Call, session: Session, select: Select, output: Output) -> int:
    args = call.args
    until = None if args.duration is None else time.monotonic() + args.duration
    shown, cause, code = 0, "interrupted", Exit.OK
    output.begin(session.begin)
    with contextlib.suppress(KeyboardInterrupt), interruptible():
        for events in session.events(until):
            for event in select.of(events):
                if isinstance(event, Frame):
                    if shown == args.count:
                        break
                    shown += 1
                output.event(event)
            output.flush()
            if shown == args.count:
                cause = f"{shown} events"
                break
        else:
            cause = session.ended or "the time is over"
            code = Exit.UNREACHABLE if session.ended else Exit.OK
    journey = session.journey
    output.end(notes.End(at_ns=time.time_ns(), host=session.begin.host, frames=shown, lost_frames=journey.lost_frames,
                         lost_notes=journey.lost_notes, cause=cause))
    output.flush()
    call.screen.note(f"{shown} events, {journey.lost_frames + journey.lost_notes} lost; {cause}")
    return code


def _replay(call: Call) -> int:
    """The same out of a capture."""
    args = call.args
    found = capture.load([Path(name) for name in args.read.split(",")])
    vm, expression = split(call, args.words, [one.vm for begin in found.begins for one in begin.vms])
    select = _select(call, vm, expression, here=True)
    output = _output(call, found.begins)
    for begin in found.begins[:1]:
        output.begin(begin)
    shown = 0
    for event in select.of(found.events):
        if isinstance(event, Frame):
            if shown == args.count:
                break
            shown += 1
        output.event(event)
    for end in found.ends[-1:]:
        output.end(end)
    output.flush()
    call.screen.note(f"{shown} events, {found.lost} were lost" + ("" if found.whole else "; the capture was cut off"))
    return Exit.OK


def _select(call: Call, vm: str, expression: Expression | None, *, here: bool = False) -> Select:
    args = call.args
    points = args.point or (ONCE if args.write else frozenset(Point))
    if points == {Point.LOST} and not args.kernel and not here:
        raise UsageError("what the kernel drops is seen with --kernel alone", "add --kernel")
    here = here or expression is not None and not expression.fits
    return Select(points, vm, args.epoch, round((args.min_hold or 0) * 1e9), expression, here)


def _output(call: Call, begins: Sequence[notes.Begin]) -> Output:
    from appliance.trace import columns, lines, pcapng

    args = call.args
    if args.write:
        return pcapng.Writer(_file(args.write, sys.stdout.buffer))
    if call.screen.json:
        return lines.Writer(call.screen.out)
    vms = {vm.vm for begin in begins for vm in begin.vms}
    hosts = {begin.host for begin in begins}
    return columns.Columns(call.screen, vms=len(vms) > 1, hosts=len(hosts) > 1, verbose=args.verbose)


def _file(name: str, standard: BinaryIO) -> BinaryIO:
    if name == "-":
        if standard.isatty():
            raise UsageError("a capture is not for a terminal", "give a file, or pipe it into tshark -r -")
        return standard
    try:
        return open(name, "wb")
    except PermissionError:
        raise NoPermission(f"{name} cannot be written", "choose another place") from None
    except OSError as error:
        raise Unavailable(f"{name} cannot be written: {error.strerror}", "choose another place") from None
