# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs on a machine and stays: the service of a host, the witness of a pair; and the check of a configuration."""

from __future__ import annotations

from pathlib import Path

from appliance.cli.call import Call
from appliance.exits import Exit
from appliance.registry import Argument, Kind, Verb

DEFAULT_CONFIG = "/etc/holdfast"
_DIR_HELP = f"holds the *.toml files; {DEFAULT_CONFIG} if not given"
_READY = Argument("--ready-fd", "write a line to this descriptor once ready", kind=Kind.COUNT)
_LOG_FORMAT = Argument("--log-format", "of the lines on standard error; auto: journal if systemd's journal reads them",
                       choices=("auto", "text", "journal", "json"), default="auto")


def _service(call: Call) -> int:
    from appliance import config, service
    from appliance.logs.lines import Form

    return service.main(config.load(Path(call.args.config)), call.args.ready_fd, Form(call.args.log_format))


def _check_config(call: Call) -> int:
    from appliance import config

    directory = Path(call.args.directory)
    found = config.load(directory)
    vms = sorted(found.vm)
    document = {"schema": "holdfast.check-config/1", "ok": True, "host": found.host.name, "vms": vms}
    names = f"host {found.host.name}, peer {found.peer.name}, {len(found.link)} links, VMs {', '.join(vms)}"
    call.show(document, f"{directory}: correct: {names}")
    return Exit.OK


def _witness(call: Call) -> int:
    from appliance.arbiter import key, witness
    from appliance.logs.lines import Form

    args = call.args
    if args.make_key is not None:
        key.make(Path(args.make_key))
        call.screen.say(f"{args.make_key}: a new key; both hosts of the pair and the witness need it")
        return Exit.OK
    witness.main(args.listen, Path(args.state_dir), Path(args.keys), args.ready_fd, Form(args.log_format))
    return Exit.OK


VERBS = (
    Verb(
        "service", "run this host's service in the foreground",
        arguments=(Argument("--config", _DIR_HELP, kind=Kind.DIRECTORY, default=DEFAULT_CONFIG), _READY,
                   _LOG_FORMAT),
        examples=(("holdfast service", "what the unit of systemd runs"),), run=_service, shell=False,
        exits={Exit.OK: "it was stopped in good order", Exit.FAILED: "a defect of Holdfast ended it; see its log",
               Exit.NO_PERMISSION: "it does not run as root", Exit.CONFIG: "the configuration is wrong"},
    ),
    Verb(
        "check-config", "check a configuration",
        text="""Says file, line, key, what is wrong and what helps, for the first fault that it finds.""",
        arguments=(Argument("directory", _DIR_HELP, kind=Kind.DIRECTORY, metavar="DIR", default=DEFAULT_CONFIG,
                            optional=True),),
        examples=(("holdfast check-config && systemctl restart holdfast", "before a restart"),),
        schema="holdfast.check-config/1", run=_check_config,
        exits={Exit.OK: "it is correct", Exit.CONFIG: "it is not"},
    ),
    Verb(
        "witness", "decide for pairs of hosts that lose sight of each other; for a third machine",
        text="A pair's key is DIR/PAIR.key: what arbiter.key_file names on both of its hosts.",
        arguments=(
            Argument("--listen", "UDP; 0.0.0.0:7790 if not given", default="0.0.0.0:7790", metavar="HOST:PORT"),
            Argument("--state-dir", "keeps the grants; /var/lib/holdfast-witness if not given", kind=Kind.DIRECTORY,
                     default="/var/lib/holdfast-witness"),
            Argument("--keys", "holds PAIR.key for each pair; /etc/holdfast-witness if not given", kind=Kind.DIRECTORY,
                     default="/etc/holdfast-witness"),
            Argument("--make-key", "write a new key, and do nothing else", kind=Kind.FILE),
            _READY, _LOG_FORMAT,
        ),
        examples=(("holdfast witness --make-key /etc/holdfast-witness/alpha-beta.key", "the key of a new pair"),
                  ("holdfast witness", "serve all pairs that have a key")),
        run=_witness, shell=False,
    ),
)
