# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast report`: a tarball to send along when something is wrong with Holdfast itself."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.cli.call import Call
from appliance.cli.running import DEFAULT_CONFIG
from appliance.cli.screen import size
from appliance.exits import Exit
from appliance.registry import CONTROL, Argument, Kind, Verb


def _run(call: Call) -> int:
    from appliance import report

    name = call.args.output or f"holdfast-report-{time.strftime('%Y%m%dT%H%M%S')}.tar.gz"
    found = report.write(Path(name), call.control, Path(call.args.config))
    told = f"{len(found['members'])} parts, {size(Path(name).stat().st_size)}"
    lines = [f"{name}: {told}; look through it before you send it"]
    lines += [f"  without {part}: {reason}" for part, reason in sorted(found["missing"].items())]
    call.show(found, "\n".join(lines))
    return Exit.OK


VERBS = (
    Verb(
        "report", "a tarball for a bug report, secrets removed",
        text="""What the service of this host says (status, health, history, epochs, log), its configuration, and what
the host is: links, addresses, packet filter rules, versions, the journal. It works without a service too, and names
what could not be had. Passwords, tokens, private keys and users in URLs are removed, and key files are not read;
names and addresses stay. The file is readable for its owner alone and is not written over another. Make one on each
host.""",
        arguments=(Argument("--output", "write it there; holdfast-report-TIME.tar.gz here if not given", kind=Kind.FILE,
                            short="-o"),
                   Argument("--config", f"holds the *.toml files; {DEFAULT_CONFIG} if not given", kind=Kind.DIRECTORY,
                            default=DEFAULT_CONFIG),
                   CONTROL),
        examples=(("holdfast report -o /tmp/alpha.tar.gz", "as root, soon after it happened"),),
        schema="holdfast.report/1", run=_run,
    ),
)
