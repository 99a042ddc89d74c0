# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands `holdfast lab ...`."""

import argparse
import os
import re
import sys
from typing import Any

from appliance.cli import emit, json_options
from appliance.errors import Unavailable, UsageError
from appliance.exits import Exit
from appliance.lab import blueprint
from appliance.lab.blueprint import Options
from appliance.lab.faults import KINDS
from appliance.lab.processes import MARK
from appliance.lab.third import PLACE
from appliance.lab.topology import HOSTS, PLACES
from appliance.units import parse_duration, parse_size

FALLIBLE = (*HOSTS, PLACE)
_NAMED = "which lab, of several side by side (HOLDFAST_LAB; lab)"


def add_commands(lab: argparse.ArgumentParser) -> None:
    """Add up, status, exec, fault, heal and down to the parser of `holdfast lab`."""
    commands = lab.add_subparsers(dest="lab_command", required=True, metavar="COMMAND")
    named = type(lab)(add_help=False)
    named.add_argument("--name", default=os.environ.get(MARK, "lab"), help=_NAMED)
    shown = [named, json_options()]

    up = commands.add_parser("up", parents=shown, help="make a lab; return once its VM is protected")
    _add_options(up)
    up.set_defaults(run=_up)

    status = commands.add_parser("status", parents=shown, help="what outside tools need to know of a lab")
    status.set_defaults(run=_status)

    run = commands.add_parser("exec", parents=[named], help="run a command on a host or as the client",
                              usage="holdfast lab exec [--name NAME] WHERE -- COMMAND ...")  # fmt: skip
    run.add_argument("where", choices=PLACES, metavar="WHERE", help=", ".join(PLACES))
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="and its arguments")
    run.set_defaults(run=_exec)

    fault = commands.add_parser("fault", parents=shown, help="make something go wrong")
    fault.add_argument("kind", metavar="FAULT", help=f"{', '.join(KINDS)}; link-down:1 is the second link")
    fault.add_argument("host", choices=FALLIBLE, metavar="HOST", help=f"{', '.join(HOSTS)}; witness for witness-down")
    fault.set_defaults(run=_fault)

    heal = commands.add_parser("heal", parents=shown, help="undo every fault of a host")
    heal.add_argument("host", choices=FALLIBLE, metavar="HOST", help=", ".join(FALLIBLE))
    heal.set_defaults(run=_heal)

    down = commands.add_parser("down", parents=shown, help="remove a lab, whole or half-made")
    down.set_defaults(run=_down)


def _add_options(up: argparse.ArgumentParser) -> None:
    default = Options()
    up.add_argument("--kernel", help="guest kernel; build/image/vmlinuz if not given")
    up.add_argument("--initrd", help="guest initrd; build/image/initrd.img if neither is given")
    line = f"{blueprint.CONSOLE} {blueprint.ADDRESSES}".replace("%", "%%")
    up.add_argument("--append", default="", help=f"added to the guest's kernel command line: {line}")
    up.add_argument("--memory", type=_size, default=default.memory, help="such as 256MiB; 128MiB if not given")
    up.add_argument("--vcpus", type=int, default=default.vcpus, help="virtual CPUs; 1 if not given")
    up.add_argument("--epoch", type=_epoch, metavar="adaptive|TIME", help="adaptive, or a length such as 25ms")
    up.add_argument("--arbiter", choices=("witness", "etcd", "none"), default=default.arbiter,
                    help="on the third machine; witness if not given. none: the risk of two speakers is accepted")
    up.add_argument("--vms", type=int, default=default.vms, help="1, or 2: web2 is at home on beta; 1 if not given")
    up.add_argument("--qemu", default=default.qemu, metavar="PATH", help=f"{default.qemu} if not given")
    up.add_argument("--accel", choices=("auto", "kvm", "tcg"), default=default.accel)
    up.add_argument("--tracker", choices=("auto", "uffd-wp", "compare"), default=default.tracker)
    up.add_argument("--log", choices=("debug", "info", "warning", "error"), default=default.log)
    up.add_argument("--timeout", type=_seconds, default=120.0, help="give up after this; 120s if not given")
    up.add_argument("--keep", action="store_true", help="leave a lab that failed as it is, to look into it")


def _size(text: str) -> int:
    # As QEMU's -m: a bare number is MiB, and K, M and G will do.
    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    try:
        return parse_size(f"{found[1]}{found[2] or 'M'}iB" if found else text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(": ".join(map(str, exc.args))) from None


def _seconds(text: str) -> float:
    return _duration(text, "s")


def _epoch(text: str) -> float | None:
    return None if text == "adaptive" else _duration(text, "ms")


def _duration(text: str, unit: str) -> float:
    try:
        return parse_duration(text + unit if re.fullmatch(r"[\d.]+", text) else text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(": ".join(map(str, exc.args))) from None


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _up(args: argparse.Namespace) -> int:
    from appliance.lab.lab import Lab

    fields = ("name", "kernel", "initrd", "append", "memory", "vcpus", "epoch", "qemu", "accel", "tracker", "log",
              "arbiter", "vms")
    options = Options(**{field: getattr(args, field) for field in fields})
    lab = Lab.up(options, timeout=args.timeout, keep=args.keep, progress=_tell)
    status = lab.status()
    name = "" if lab.name == "lab" else f" --name {lab.name}"
    ready = f"the VM is protected: try  holdfast lab exec{name} client -- ping {status['vm']['ip']}"
    emit(status, ready, args)
    return Exit.OK


def _status(args: argparse.Namespace) -> int:
    from appliance.lab.lab import Lab, is_protected

    status = Lab.load(args.name).status()
    lines = [f"lab {status['name']}   VM {status['vm']['ip']}   client in {status['client']['netns']}"]
    lines += [_host_line(name, host) for name, host in status["hosts"].items()]
    third = status["witness"]
    if third["arbiter"] != "none":
        lines.append(f"  {PLACE:<9}{third['arbiter']:<9}{'running' if third['service_pid'] else 'dead'}")
    emit(status, "\n".join(lines), args)
    return Exit.OK if is_protected(status["hosts"]) else Exit.DEGRADED


def _host_line(name: str, host: dict[str, Any]) -> str:
    service = f"{host['service_pid'] or 'dead'}{' paused' if host['service_paused'] else ''}"
    cells = [f"{name:<9}", f"{host['role'] or '-':<9}", f"{host['phase'] or '-':<13}"]
    cells += [f"{key} {'-' if host[key] is None else host[key]}  " for key in ("term", "epoch")]
    cut = f"  cut: {', '.join(host['cables_cut'])}" if host["cables_cut"] else ""
    return f"  {''.join(cells)}service {service}  qemu {host['qemu_pid'] or '-'}{cut}"


def _exec(args: argparse.Namespace) -> int:
    from appliance.lab.lab import Lab

    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise UsageError("no command is given", f"holdfast lab exec {args.where} -- COMMAND ...")
    lab = Lab.load(args.name)
    command = lab.command(args.where, words)
    try:
        os.execvpe(command[0], command, lab.environment(args.where))
    except OSError as exc:
        raise Unavailable(f"cannot run {command[0]}: {exc.strerror}", "install iproute2") from None


def _fault(args: argparse.Namespace) -> int:
    from appliance.lab.lab import Lab

    fault = Lab.load(args.name).fault(args.kind, args.host)
    document = {"schema": "holdfast.lab-fault/1", "fault": fault.kind, "host": fault.host,
                "at": fault.unix, "monotonic": fault.monotonic}  # fmt: skip
    emit(document, f"{fault.host}: {fault.kind} at {fault.unix:.6f}", args)
    return Exit.OK


def _heal(args: argparse.Namespace) -> int:
    from appliance.lab.lab import Lab

    done = Lab.load(args.name).heal(args.host)
    document = {"schema": "holdfast.lab-heal/1", "host": args.host, "changed": bool(done), "done": done}
    emit(document, f"{args.host}: {'; '.join(done) or 'nothing to heal'}", args)
    return Exit.OK


def _down(args: argparse.Namespace) -> int:
    from appliance.lab.lab import down

    done = down(args.name)
    document = {"schema": "holdfast.lab-down/1", "name": args.name, "changed": bool(done), "removed": done}
    emit(document, "\n".join(f"removed {what}" for what in done) or f"there is no lab {args.name!r}", args)
    return Exit.OK
