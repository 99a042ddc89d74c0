# SPDX-License-Identifier: GPL-2.0-or-later
"""From the words of a command line to an exit code, and how faults are told.

People get `holdfast: cause` with the remedy on the next line, programs (`-j`) get
`{"error": {"code", "message", "hint"}}` on standard output; the exit code is that of `appliance.exits`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from appliance import registry
from appliance.cli.screen import Screen
from appliance.errors import HoldfastError, UsageError
from appliance.exits import Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Foreseeable faults end in a message, never in a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = execute(words)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK


def execute(words: Sequence[str], defaults: dict[str, Any] | None = None, *, shell: bool = False) -> int:
    """Run one command. `defaults` stand for options that were not given; `shell`: only verbs that the shell offers.
    Raises what is no foreseeable fault."""
    try:
        return _run(words, defaults or {}, shell)
    except HoldfastError as error:
        return _fail(words, error.message, error.hint, error.exit_code, {"code": error.code, **error.details()})
    except Exception as error:
        # The other halves have roots of their own, loaded only now: they cost time and are rarely needed.
        from ebpf.errors import BpfError
        from vmlink.errors import VmError

        if isinstance(error, BpfError | VmError):
            return _fail(words, error.message, error.hint, Exit.DEGRADED, {"code": "unavailable"})
        raise


def _run(words: Sequence[str], defaults: dict[str, Any], shell: bool) -> int:
    from appliance.cli import arguments
    from appliance.cli.call import Call

    if not words or words[0] in ("-h", "--help", "--version"):
        return _about(words)
    found = registry.find(words)
    if found is None:
        return _not_a_verb(words)
    verb, length = found
    if shell and not verb.shell:
        raise UsageError(f"{verb.name} is not for the shell", f"holdfast {verb.name}, on the command line")
    args = arguments.read(verb, words[length:])
    for key, value in defaults.items():
        if getattr(args, key, None) in (None, False, "auto"):
            setattr(args, key, value)
    return Call(verb, args, screen(args)).run()


def screen(args: argparse.Namespace) -> Screen:
    """The one that the arguments ask for."""
    return Screen(json=getattr(args, "json", False), pretty=getattr(args, "pretty", False),
                  colour=getattr(args, "color", "auto"))


def _about(words: Sequence[str]) -> int:
    from appliance import __version__
    from appliance.cli import help

    if words and words[0] == "--version":
        print(f"holdfast {__version__}")
    else:
        print(help.overview(), file=sys.stdout if words else sys.stderr)
    return Exit.OK if words else Exit.USAGE


def _not_a_verb(words: Sequence[str]) -> int:
    """The beginning of several, such as `lab`, or nothing that is known."""
    import difflib

    from appliance.cli import help

    names = [name for verb in registry.every() for name in verb.names]
    if group := [name for name in names if name.split()[:1] == list(words[:1])]:
        if set(words[1:]) <= {"-h", "--help"} and words[1:]:
            print(help.of_group(words[0]))
            return Exit.OK
        raise UsageError(f"{' '.join(words[:2])!r} is no verb", f"{', '.join(group)}; see holdfast {words[0]} --help")
    near = difflib.get_close_matches(words[0], names, 1)
    raise UsageError(f"{words[0]!r} is no verb", f"did you mean {near[0]}?" if near else "see holdfast --help")


def _fail(words: Sequence[str], message: str, hint: str, exit_code: Exit, details: dict[str, Any]) -> int:
    options = words[: list(words).index("--")] if "--" in words else words
    if {"-j", "--json", "-p", "--pretty", "-jp", "-pj"} & set(options):
        print(json.dumps({"error": {**details, "message": message, "hint": hint}}), flush=True)
    else:
        sys.stdout.flush()
        print(f"holdfast: {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr, flush=True)
    return exit_code
