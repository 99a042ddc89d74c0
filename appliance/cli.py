# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `holdfast`: what is said on the command line, and how faults are told.

People get `holdfast: cause` with the remedy on the next line, programs (`-j`) get
`{"error": {"code", "message", "hint"}}` on standard output; the exit code is that of `appliance.exits`.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from appliance import __version__
from appliance.errors import HoldfastError, UsageError
from appliance.exits import Exit

DEFAULT_CONTROL = "/run/holdfast/control.sock"
DEFAULT_CONFIG = "/etc/holdfast"
DIR_HELP = f"holds the *.toml files; {DEFAULT_CONFIG} if not given"
EXIT_TEXT = "exit codes: " + ", ".join(f"{code.value} {code.name.lower().replace('_', ' ')}" for code in Exit)


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line as our errors are reported."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"see {self.prog} --help")


def json_options() -> Parser:
    """-j and -p, the parent of every command that prints."""
    parent = Parser(add_help=False)
    parent.add_argument("-j", "--json", action="store_true", help="print JSON, errors too")
    parent.add_argument("-p", "--pretty", action="store_true", help="print indented JSON")
    return parent


def emit(document: dict[str, Any], text: str | Callable[[], str], args: argparse.Namespace) -> None:
    """Print `document` as JSON where the caller asked for it, `text` otherwise."""
    if args.json or args.pretty:
        print(json.dumps(document, indent=2 if args.pretty else None))
    else:
        print(text if isinstance(text, str) else text())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Foreseeable faults end in a message, never in a traceback."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(words).parse_args(words)
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has enough; what is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except HoldfastError as exc:
        return _fail(words, exc.message, exc.hint, exc.exit_code, {"code": exc.code, **exc.details()})
    except Exception as exc:
        # The other halves have roots of their own, loaded only now: they cost time and are rarely needed.
        from ebpf.errors import BpfError
        from vmlink.errors import VmError

        if isinstance(exc, BpfError | VmError):
            return _fail(words, exc.message, exc.hint, Exit.UNAVAILABLE, {"code": "unavailable"})
        raise


def _fail(words: list[str], message: str, hint: str, exit_code: Exit, details: dict[str, Any]) -> int:
    options = words[: words.index("--")] if "--" in words else words
    if {"-j", "--json", "-p", "--pretty", "-jp", "-pj"} & set(options):
        print(json.dumps({"error": {**details, "message": message, "hint": hint}}))
    else:
        print(f"holdfast: {message}" + (f"\n  {hint}" if hint else ""), file=sys.stderr)
    return exit_code


def _parser(words: list[str]) -> Parser:
    purpose = "Keeps a running virtual machine alive when its host dies."
    parser = Parser(prog="holdfast", description=purpose, epilog=EXIT_TEXT)
    parser.add_argument("--version", action="version", version=f"holdfast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    service = commands.add_parser("service", help="run this host's service in the foreground")
    service.add_argument("--config", type=Path, default=Path(DEFAULT_CONFIG), metavar="DIR", help=DIR_HELP)
    service.add_argument("--ready-fd", type=int, metavar="N", help="write a line to it once ready")
    service.set_defaults(run=_service)

    status = commands.add_parser(
        "status", parents=[json_options()], help="what the service does now", epilog=EXIT_TEXT
    )
    where = f"its control socket; else HOLDFAST_CONTROL, else {DEFAULT_CONTROL}"
    status.add_argument("--control", type=Path, metavar="PATH", help=where)
    status.set_defaults(run=_status)

    check = commands.add_parser("check-config", parents=[json_options()], help="check a configuration")
    check.add_argument("directory", type=Path, nargs="?", default=Path(DEFAULT_CONFIG), metavar="DIR", help=DIR_HELP)
    check.set_defaults(run=_check_config)

    witness = commands.add_parser(
        "witness", help="decide for pairs of hosts that lose sight of each other; for a third machine",
        epilog=f"A pair's key is DIR/PAIR.key: what arbiter.key_file names on both of its hosts. {EXIT_TEXT}",
    )
    witness.add_argument("--listen", default="0.0.0.0:7790", metavar="HOST:PORT", help="UDP; 0.0.0.0:7790 if not given")
    witness.add_argument("--state-dir", type=Path, default=Path("/var/lib/holdfast-witness"), metavar="DIR",
                         help="keeps the grants; /var/lib/holdfast-witness if not given")
    witness.add_argument("--keys", type=Path, default=Path("/etc/holdfast-witness"), metavar="DIR",
                         help="holds PAIR.key for each pair; /etc/holdfast-witness if not given")
    witness.add_argument("--make-key", type=Path, metavar="FILE", help="write a new key, and do nothing else")
    witness.add_argument("--ready-fd", type=int, metavar="N", help="write a line to it once ready")
    witness.set_defaults(run=_witness)

    from appliance import operate

    operate.add_commands(commands)
    lab = commands.add_parser("lab", help="two hosts, a switch and a client on this machine")
    if words[:1] == ["lab"]:
        from appliance.lab.commands import add_commands

        add_commands(lab)
    return parser


def _service(args: argparse.Namespace) -> int:
    from appliance import config, service

    return service.main(config.load(args.config), ready_fd=args.ready_fd)


def _witness(args: argparse.Namespace) -> int:
    from appliance.arbiter import key, witness

    if args.make_key is not None:
        key.make(args.make_key)
        print(f"{args.make_key}: a new key; both hosts of the pair and the witness need it")
        return Exit.OK
    witness.main(args.listen, args.state_dir, args.keys, args.ready_fd)
    return Exit.OK


def _status(args: argparse.Namespace) -> int:
    from appliance import control, status_text

    path = args.control or os.environ.get("HOLDFAST_CONTROL") or DEFAULT_CONTROL
    reply = control.call(path, "status")
    emit(reply, lambda: status_text.render(reply, colour=sys.stdout.isatty()), args)
    return status_text.exit_code(reply)


def _check_config(args: argparse.Namespace) -> int:
    from appliance import config

    found = config.load(args.directory)
    vms = sorted(found.vm)
    document = {"schema": "holdfast.check-config/1", "ok": True, "host": found.host.name, "vms": vms}
    names = f"host {found.host.name}, peer {found.peer.name}, {len(found.link)} links, VMs {', '.join(vms)}"
    emit(document, f"{args.directory}: correct: {names}", args)
    return Exit.OK


if __name__ == "__main__":
    sys.exit(main())
