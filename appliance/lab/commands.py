# SPDX-License-Identifier: GPL-2.0-or-later
"""The verbs `holdfast lab ...`."""

from __future__ import annotations

import os
import re
from typing import Any

from appliance.cli.call import Call
from appliance.errors import Unavailable, UsageError
from appliance.exits import Exit
from appliance.lab.kinds import KINDS
from appliance.lab.topology import HOSTS, PLACES, THIRD
from appliance.registry import Argument, Kind, Verb

FALLIBLE = (*HOSTS, THIRD)


def _size(text: str) -> int:
    # As QEMU's -m: a bare number is MiB, and K, M and G will do.
    from appliance.units import parse_size

    found = re.fullmatch(r"(\d+)([KMG]?)", text)
    return parse_size(f"{found[1]}{found[2] or 'M'}iB" if found else text)


def _epoch(text: str) -> float | None:
    from appliance.units import parse_duration

    return None if text == "adaptive" else parse_duration(text + "ms" if re.fullmatch(r"[\d.]+", text) else text)


def _disk(text: str) -> Any:
    from appliance.lab import disks

    return disks.parse(text)


def _volume(text: str) -> Any:
    from appliance.lab import volume

    return volume.parse(text)


def _name(call: Call) -> str:
    from appliance.lab.processes import MARK

    return call.args.name or os.environ.get(MARK, "lab")


def _up(call: Call) -> int:
    from appliance.lab.blueprint import DISK_GUEST_MEMORY, Options
    from appliance.lab.lab import Lab

    chosen = ("kernel", "initrd", "append", "memory", "vcpus", "epoch", "qemu", "accel", "tracker", "log", "arbiter",
              "vms", "guest", "volume")
    given = {field: value for field in chosen if (value := getattr(call.args, field)) is not None}
    if call.args.guest == "disk":
        given.setdefault("memory", DISK_GUEST_MEMORY)
    given["disks"] = tuple(call.args.disk or ())
    given["disk_faults"] = call.args.disk_faults
    lab = Lab.up(Options(name=_name(call), **given), timeout=call.args.timeout, keep=call.args.keep,
                 progress=call.screen.note)
    status = lab.status()
    name = "" if lab.name == "lab" else f" --name {lab.name}"
    call.show(status, f"the VM is protected: try  holdfast lab exec{name} client -- ping {status['vm']['ip']}")
    return Exit.OK


def _status(call: Call) -> int:
    from appliance.lab.lab import Lab, is_protected

    status = Lab.load(_name(call)).status()
    lines = [f"lab {status['name']}   VM {status['vm']['ip']}   client in {status['client']['netns']}"]
    lines += [_host_line(name, host) for name, host in status["hosts"].items()]
    third = status["witness"]
    if third["arbiter"] != "none":
        lines.append(f"  {THIRD:<9}{third['arbiter']:<9}{'running' if third['service_pid'] else 'dead'}")
    call.show(status, "\n".join(lines))
    return Exit.OK if is_protected(status["hosts"]) else Exit.DEGRADED


def _host_line(name: str, host: dict[str, Any]) -> str:
    service = f"{host['service_pid'] or 'dead'}{' paused' if host['service_paused'] else ''}"
    cells = [f"{name:<9}", f"{host['role'] or '-':<9}", f"{host['phase'] or '-':<13}"]
    cells += [f"{key} {'-' if host[key] is None else host[key]}  " for key in ("term", "epoch")]
    cut = f"  cut: {', '.join(host['cables_cut'])}" if host["cables_cut"] else ""
    cut += f"  disks {' and '.join(host['disk_faults'])}" if host["disk_faults"] else ""
    return f"  {''.join(cells)}service {service}  qemu {host['qemu_pid'] or '-'}{cut}"


def _exec(call: Call) -> int:
    from appliance.lab.lab import Lab

    args = call.args
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    if not words:
        raise UsageError("no command is given", f"holdfast lab exec {args.where} -- COMMAND ...")
    lab = Lab.load(_name(call))
    command = lab.command(args.where, words)
    try:
        os.execvpe(command[0], command, lab.environment(args.where))
    except OSError as exc:
        raise Unavailable(f"cannot run {command[0]}: {exc.strerror}", "install iproute2") from None


def _fault(call: Call) -> int:
    from appliance.lab.lab import Lab

    fault = Lab.load(_name(call)).fault(call.args.kind, call.args.host)
    document = {"schema": "holdfast.lab-fault/1", "fault": fault.kind, "host": fault.host,
                "at": fault.unix, "monotonic": fault.monotonic}  # fmt: skip
    call.show(document, f"{fault.host}: {fault.kind} at {fault.unix:.6f}")
    return Exit.OK


def _heal(call: Call) -> int:
    from appliance.lab.lab import Lab

    host = call.args.host
    done = Lab.load(_name(call)).heal(host)
    document = {"schema": "holdfast.lab-heal/1", "host": host, "changed": bool(done), "done": done}
    call.show(document, f"{host}: {'; '.join(done) or 'nothing to heal'}")
    return Exit.OK


def _down(call: Call) -> int:
    from appliance.lab.lab import down

    name = _name(call)
    done = down(name)
    document = {"schema": "holdfast.lab-down/1", "name": name, "changed": bool(done), "removed": done}
    call.show(document, "\n".join(f"removed {what}" for what in done) or f"there is no lab {name!r}")
    return Exit.OK


_NAMED = Argument("--name", "which lab, of several side by side (HOLDFAST_LAB; lab)")
_FALLIBLE = Argument("host", f"{', '.join(HOSTS)}; {THIRD} for {THIRD}-down", choices=FALLIBLE, metavar="HOST")
_UP = (
    Argument("--kernel", "guest kernel; build/image/vmlinuz if not given", kind=Kind.FILE),
    Argument("--initrd", "guest initrd; build/image/initrd.img if neither is given", kind=Kind.FILE),
    Argument("--append", "added to the guest's kernel command line, which names its console and addresses",
             metavar="WORDS"),
    Argument("--guest", "which image of ours: memory (make image), or disk with PostgreSQL (make image-disk)",
             choices=("memory", "disk")),
    Argument("--disk", "gives each host a copy of that image, or an empty one, as a disk of web1; raw if not said",
             read=_disk, metavar="SIZE|PATH[:FORMAT]", many=True),
    Argument("--disk-faults", "disks that `lab fault` can let fail or be full; slower", kind=Kind.FLAG),
    Argument("--volume", "a disk of web1 that there is only one of, which both hosts reach; iscsi if not said. guest: "
             "the disk guest's own", read=_volume, metavar="SIZE|guest[:iscsi|nbd]|DEVICE"),
    Argument("--memory", "such as 256MiB; 128MiB if not given, for the disk guest 256MiB", read=_size,
             metavar="SIZE"),
    Argument("--vcpus", "virtual CPUs; 1 if not given", kind=Kind.COUNT),
    Argument("--epoch", "adaptive, or a length such as 25ms", read=_epoch, metavar="adaptive|TIME"),
    Argument("--arbiter", "on the third machine; witness if not given. none: the risk of two speakers is accepted",
             choices=("witness", "etcd", "none")),
    Argument("--vms", "1, or 2: web2 is at home on beta; 1 if not given", kind=Kind.COUNT),
    Argument("--qemu", "qemu-system-x86_64 if not given", kind=Kind.FILE, metavar="PATH"),
    Argument("--accel", "how the guest's processor is made; auto if not given", choices=("auto", "kvm", "tcg")),
    Argument("--tracker", "how dirty pages are found; auto if not given", choices=("auto", "uffd-wp", "compare")),
    Argument("--log", "what the services log", choices=("debug", "info", "warning", "error")),
    Argument("--timeout", "give up after this; 120s if not given", kind=Kind.SECONDS, default=120.0, metavar="TIME"),
    Argument("--keep", "leave a lab that failed as it is, to look into it", kind=Kind.FLAG),
)
VERBS = (
    Verb("lab up", "make a lab: two hosts, a switch and a client on this machine; return once its VM is protected",
         arguments=(_NAMED, *_UP),
         examples=(("holdfast lab up", "a protected VM to play with"),
                   ("holdfast lab up --guest disk", "a guest with PostgreSQL on a replicated disk"),
                   ("holdfast lab up --disk 8GiB --disk 1GiB:qcow2", "with two empty disks"),
                   ("holdfast lab up --volume 1GiB", "with a shared volume, by iSCSI"),
                   ("holdfast lab up --name two --vms 2", "another, with a VM at home on each host")),
         schema="holdfast.lab/1", run=_up, shell=False),
    Verb("lab status", "what outside tools need to know of a lab", arguments=(_NAMED,), schema="holdfast.lab/1",
         run=_status, shell=False, exits={Exit.OK: "its VM is protected", Exit.DEGRADED: "it is not"}),
    Verb("lab exec", "run a command on a host or as the client",
         arguments=(_NAMED, Argument("where", ", ".join(PLACES), choices=PLACES, metavar="WHERE"),
                    Argument("words", "the command and its arguments", kind=Kind.WORDS)),
         examples=(("holdfast lab exec alpha -- holdfast status", "the status of that host"),
                   ("holdfast lab exec client -- ping 10.77.0.10", "what a client sees")),
         run=_exec, shell=False, exits={Exit.OK: "the command's own exit code otherwise"}),
    Verb("lab fault", "make something go wrong",
         arguments=(_NAMED, Argument("kind", f"{', '.join(KINDS)}; link-down:1 is the second link",
                                     choices=(*KINDS, "link-down:0", "link-down:1"), metavar="FAULT"),
                    _FALLIBLE),
         examples=(("holdfast lab fault crash alpha", "power loss of a host"),), schema="holdfast.lab-fault/1",
         run=_fault, shell=False),
    Verb("lab heal", "undo every fault of a host", arguments=(_NAMED, _FALLIBLE), schema="holdfast.lab-heal/1",
         examples=(("holdfast lab heal alpha", "it comes back"),), run=_heal, shell=False),
    Verb("lab down", "remove a lab, whole or half-made", arguments=(_NAMED,), schema="holdfast.lab-down/1", run=_down,
         examples=(("holdfast lab down", "nothing is left"),), shell=False),
)
