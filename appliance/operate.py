# SPDX-License-Identifier: GPL-2.0-or-later
"""The operator's commands on VMs and hosts: their words, what they ask of the service, what they print."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance import control, health_text
from appliance.cli import DEFAULT_CONTROL, EXIT_TEXT, emit, json_options
from appliance.exits import Exit

TIMEOUT = 60.0
"""Seconds for what may have to wait for both hosts."""


def add_commands(commands: Any) -> None:
    """Add them to an argparse subparsers object."""
    add = _Adder(commands)
    add("switchover", "vm", "move a VM to the other host; its clients lose nothing", _switchover)
    drain = add("drain", "host", "move all VMs away from a host, for its maintenance", _drain)
    drain.add_argument("--undo", action="store_true", help="VMs may come to it again; none moves by this")
    fence = add("fence", "host", "keep a host out: silent at once, until the fence is lifted", _fence)
    fence.add_argument("--lift", action="store_true", help="let it in again")
    fence.add_argument("--yes", action="store_true", help="it is not reachable, and I have made sure that it is off")
    add("health", "", "how well both hosts are, part by part", _health)
    add("pause", "vm", "leave a VM unprotected for a while; it runs on", _pause)
    add("resume", "vm", "protect it again", _pause)


class _Adder:
    def __init__(self, commands: Any) -> None:
        self._commands = commands

    def __call__(self, name: str, subject: str, text: str, run: Callable[[argparse.Namespace], int]) -> Any:
        command = self._commands.add_parser(name, parents=[json_options()], help=text, description=text + ".",
                                            epilog=EXIT_TEXT)
        if subject:
            command.add_argument(subject, metavar=subject.upper())
        where = f"control socket of the service; else HOLDFAST_CONTROL, else {DEFAULT_CONTROL}"
        command.add_argument("--control", type=Path, metavar="PATH", help=where)
        command.set_defaults(run=run)
        return command


def ask(args: argparse.Namespace, verb: str, **words: Any) -> dict[str, Any]:
    """What the service answers. Raises HoldfastError."""
    path = args.control or os.environ.get("HOLDFAST_CONTROL") or DEFAULT_CONTROL
    return control.call(path, verb, timeout=TIMEOUT, **words)


def _switchover(args: argparse.Namespace) -> int:
    reply = ask(args, "switchover", vm=args.vm)
    emit(reply, lambda: f"{reply['vm']}: moved from {reply['from']} to {reply['to']} in {reply['ms']} ms", args)
    return Exit.OK


def _drain(args: argparse.Namespace) -> int:
    reply = ask(args, "drain", host=args.host, undo=args.undo)
    state = "drained" if reply["drained"] else "in use again"
    lines = [f"{reply['host']}: {state}", *(f"  {vm}: {result}" for vm, result in sorted(reply["vms"].items()))]
    emit(reply, "\n".join(lines), args)
    return Exit.OK if set(reply["vms"].values()) <= {"moved"} else Exit.DEGRADED


def _fence(args: argparse.Namespace) -> int:
    reply = ask(args, "fence", host=args.host, lift=args.lift, yes=args.yes)
    vms = (f"  {name}: {vm['phase']}, term {vm['term']}" for name, vm in sorted(reply["vms"].items()))
    emit(reply, "\n".join([f"{reply['host']}: {reply['result']}", *vms]), args)
    return Exit.OK


def _health(args: argparse.Namespace) -> int:
    reply = ask(args, "health")
    emit(reply, lambda: health_text.render(reply, sys.stdout.isatty()), args)
    return health_text.exit_code(reply)


def _pause(args: argparse.Namespace) -> int:
    reply = ask(args, args.command, vm=args.vm)
    emit(reply, f"{reply['vm']}: protection {'paused' if reply['paused'] else 'wanted again'}", args)
    return Exit.OK
