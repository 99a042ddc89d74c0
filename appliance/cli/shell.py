# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast shell`: the declaration of the admin shell; `appliance.shell` has it."""

from __future__ import annotations

import sys

from appliance.cli.call import Call
from appliance.errors import Unavailable, UsageError
from appliance.exits import Exit
from appliance.registry import Access, Argument, Kind, Verb


def _run(call: Call) -> int:
    try:
        from appliance.shell.shell import Shell
    except ImportError as error:
        raise Unavailable(f"the shell needs {error.name}", "install python3-prompt-toolkit") from None
    shell = Shell(call.control, call.args.color, quiet=call.args.quiet)
    if call.args.command is not None:
        return shell.do(call.args.command)
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        raise UsageError("the shell needs a terminal", "holdfast shell -c 'VERB ...; VERB ...' runs verbs without one")
    return shell.run()


VERBS = (
    Verb(
        "shell", "the verbs at a prompt, with live events above it",
        text="""The prompt shows this host, its role and the state of its VMs, and changes when they do. The bar at
the bottom shows all VMs on both hosts. Events appear above the prompt as they happen, those that come while a verb
runs when it has ended.

A line is a verb as on the command line, without holdfast before it. Several verbs stand with ; or && between them,
and what one prints may go through a pipe: status -j | grep epoch. Tab completes verbs, options, VMs and hosts; the
arrow keys and Ctrl-R find earlier lines, which are kept in ~/.local/state/holdfast/shell-history. Ctrl-C ends a verb
that goes on, such as events or top; Ctrl-D, exit or quit leaves. A service that ends is waited for.

Its exit code is that of the last verb.""",
        arguments=(Argument("--command", "run this line and leave", short="-c", metavar="LINE"),
                   Argument("--quiet", "no events above the prompt", kind=Kind.FLAG, short="-q")),
        examples=(("holdfast shell", "operate a pair"),
                  ("holdfast shell -c 'drain alpha && wait gone'", "in a script, as one step")),
        access=Access.GROUP, service="events", run=_run, shell=False, page="holdfast-shell",
        exits={Exit.OK: "the last verb was done; else the exit code is that verb's (see holdfast(8))"},
    ),
)
