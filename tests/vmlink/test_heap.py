# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that was used is used again, by us and by what we start, and not all of it is kept for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmlink import heap

ROOT = Path(__file__).resolve().parents[2]
USE = """
import resource
from vmlink import heap
{first}

def use(count, size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for piece in [bytearray(size) for _ in range(count)]:
        piece[::4096] = bytes(size // 4096)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

use(32, 1 << 20)
again = use(32, 1 << 20)
use(8, heap.KEPT // 4)
print(again, resident())
"""


@pytest.mark.parametrize(("first", "environment"), [("heap.keep()", {}), ("", heap.environment())])
def test_memory_is_used_again_up_to_a_bound(first: str, environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", USE.format(first=first)], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **environment}, timeout=30, check=True)
    faults, resident = map(int, done.stdout.split())
    assert faults < 32 * 256 / 4, "the kernel had to give most of it anew"
    assert resident < heap.KEPT + (64 << 20), "more is kept than may be"
