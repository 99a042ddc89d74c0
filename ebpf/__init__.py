# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel half: packet programs, what they share with the service, and their loader.

Knows packets and counters; knows nothing of VMs. Start reading at `common.h`, then `gate.bpf.c`.
"""

import os
from pathlib import Path

from ebpf.errors import BpfError

__all__ = ["BpfError", "objects_dir"]


def objects_dir() -> Path:
    """The directory that holds the compiled programs; raises `BpfError` when there is none."""
    named = os.environ.get("HOLDFAST_BPF_DIR")
    places = (
        [Path(named)]
        if named
        else [Path(__file__).resolve().parent.parent / "build" / "bpf", Path("/usr/lib/holdfast/bpf")]
    )
    for place in places:
        if (place / "gate.bpf.o").is_file():
            return place
    raise BpfError(
        "the compiled packet programs are missing: looked in " + ", ".join(map(str, places)),
        "run `make bpf`, or set HOLDFAST_BPF_DIR to where they are",
    )
