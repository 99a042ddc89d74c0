# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM might write to two disks, epoch by epoch, and what the disks hold after each."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.disk.exporter import MIB, make_image
from vmlink.disk.record import Kind, Write
from vmlink.disk.spec import DiskSpec

SIZES = (4 * MIB, 2 * MIB)
FORMATS = ("raw", "qcow2")


def specs(directory: Path) -> list[DiskSpec]:
    """The disks, whose images are made when they are not there."""
    found = [DiskSpec(f"d{number}", directory / f"d{number}.img", form) for number, form in enumerate(FORMATS)]
    for spec, size in zip(found, SIZES, strict=True):
        if not spec.path.exists():
            make_image(spec.path, size, spec.format)
    return found


def epoch(seed: int, number: int) -> list[tuple[int, Write]]:
    """The writes of one epoch, some over others; the last one tells it from all others, on each disk."""
    rng = random.Random(f"{seed} {number}")
    writes = []
    for _ in range(rng.randrange(40)):
        disk = rng.randrange(2)
        length = 512 * rng.choice([1, 8, 8, 8, 64, 300])
        offset = 512 * rng.randrange((SIZES[disk] - length) // 512)
        if rng.random() < 0.3:  # where others wrote too
            offset = 4096 * rng.randrange(8)
        kind = rng.choice([Kind.WRITE, Kind.WRITE, Kind.WRITE, Kind.ZERO, Kind.TRIM])
        writes.append((disk, Write(kind, offset, length, rng.randbytes(length) if kind is Kind.WRITE else b"")))
    stamp = number.to_bytes(8, "big") * 64
    return writes + [(disk, Write(Kind.WRITE, SIZES[disk] - 512, 512, stamp)) for disk in range(2)]


def play(disks: Sequence[bytearray], writes: Sequence[tuple[int, Write]]) -> None:
    """What the writes do."""
    for disk, write in writes:
        disks[disk][write.offset:write.offset + write.length] = write.data or bytes(write.length)


def played(seed: int, numbers: Iterable[int]) -> list[bytearray]:
    """Empty disks after these epochs."""
    disks = [bytearray(size) for size in SIZES]
    for number in numbers:
        play(disks, epoch(seed, number))
    return disks


def after(seed: int, number: int) -> list[bytearray]:
    """The disks after this epoch; 0: when the copy has ended."""
    return played(seed, range(number + 1))
