# SPDX-License-Identifier: GPL-2.0-or-later
"""What the kernel itself does to frames of a VM: why it drops one, and what a socket of this machine sends again.

Two tracepoints, through BTF: a kernel without it is told by name. Nothing is attached before `Drops` is made, nor after
it is closed.
"""

import ctypes
import functools
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

from ebpf import objects_dir
from ebpf.errors import BpfError
from ebpf.libbpf import Object, library
from ebpf.trace import Ring

ASKED = 16
"""VMs that may be asked for at once."""
RECORD = struct.Struct("=BxHHxxIII4xQQ128s")
"""struct hf_kernel: kind, source, caplen, reason, len, ifindex, time_ns, location, snap."""
DROP, RETRANSMIT = 1, 2

_BTF = Path("/sys/kernel/btf/vmlinux")
_ENUM = 6  # BTF_KIND_ENUM
_TRACEPOINTS = ("dropped", "retransmitted")


class Vm(NamedTuple):
    """Whose frames: its MAC, and one address of each family (empty: none)."""

    mac: bytes
    four: bytes = b""
    six: bytes = b""


class Asked(ctypes.Structure):
    """struct hf_asked."""

    lost: int
    count: int
    netns: int
    mac: Any
    four: Any
    six: Any

    _fields_ = [
        ("lost", c_uint64),
        ("count", c_uint32),
        ("netns", c_uint32),
        ("mac", (c_uint8 * 8) * ASKED),
        ("four", (c_uint8 * 4) * ASKED),
        ("six", (c_uint8 * 16) * ASKED),
    ]


class Drops:
    """The probes, attached. Raises `BpfError` where the kernel lacks what they need, and says what that is."""

    def __init__(self, vms: Sequence[Vm], netns: int) -> None:
        """`netns`: inode number of the network namespace of the frames; 0 for any."""
        if len(vms) > ASKED:
            raise BpfError(f"{len(vms)} VMs are too many to ask the kernel for: it takes {ASKED}", "name one VM")
        if not _BTF.exists():
            raise BpfError("the kernel does not say what it drops: it has no BTF", "needs CONFIG_DEBUG_INFO_BTF")
        self._links: list[int] = []
        self._object = Object.load(objects_dir() / "drops.bpf.o")
        try:
            self._asked = self._object.state("drops_asked", Asked)
            for number, vm in enumerate(vms):
                for field, value in ((self._asked.mac, vm.mac), (self._asked.four, vm.four), (self._asked.six, vm.six)):
                    field[number][:len(value)] = list(value)
            self._asked.netns, self._asked.count = netns & 0xFFFFFFFF, len(vms)
            self._ring = Ring(os.dup(self._object.map("drops_ring")))
            for name in _TRACEPOINTS:
                self._links.append(self._object.attach_tracepoint(name))
        except BaseException:
            self.close()
            raise

    @property
    def lost(self) -> int:
        """Records that found the ring full."""
        return self._asked.lost

    def read(self) -> list[tuple[Any, ...]]:
        """The records that are there, as RECORD unpacks them."""
        return [RECORD.unpack(one) for one in self._ring.read()]

    def close(self) -> None:
        """Detach. Idempotent."""
        lib = library()[0]
        for link in self._links:
            lib.bpf_link__destroy(link)
        self._links.clear()
        if hasattr(self, "_ring"):
            self._ring.close()
        self._object.close()


@functools.cache
def reasons() -> dict[int, str]:
    """Names of enum skb_drop_reason of the running kernel, in lower case; empty where it does not tell."""
    lib = library()[0]
    for name, result, arguments in (
        ("btf__load_vmlinux_btf", c_void_p, []),
        ("btf__find_by_name_kind", c_int, [c_void_p, c_char_p, c_uint32]),
        ("btf__type_by_id", c_void_p, [c_void_p, c_uint32]),
        ("btf__name_by_offset", c_char_p, [c_void_p, c_uint32]),
        ("btf__free", None, [c_void_p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    btf = lib.btf__load_vmlinux_btf()
    if not btf:
        return {}
    try:
        number = lib.btf__find_by_name_kind(btf, b"skb_drop_reason", _ENUM)
        if number < 0:
            return {}
        at = lib.btf__type_by_id(btf, number)
        count = struct.unpack_from("=I", ctypes.string_at(at, 12), 4)[0] & 0xFFFF
        members = struct.iter_unpack("=Ii", ctypes.string_at(at + 12, 8 * count))
        named = {value: lib.btf__name_by_offset(btf, name).decode() for name, value in members}
    finally:
        lib.btf__free(btf)
    prefixes = ("SKB_DROP_REASON_", "SKB_")
    return {value: next((name[len(one):] for one in prefixes if name.startswith(one)), name).lower()
            for value, name in named.items()}


@functools.cache
def _symbols() -> list[tuple[int, str]]:
    found = []
    try:
        for line in Path("/proc/kallsyms").read_text().splitlines():
            address, kind, name = line.split()[:3]
            if kind in "tT":
                found.append((int(address, 16), name))
    except (OSError, ValueError):
        return []
    return sorted(found)


def function_at(address: int) -> str:
    """The kernel function that has this address; empty where /proc/kallsyms hides it."""
    symbols = _symbols()
    at = bisect_right(symbols, (address, "\uffff")) - 1
    return symbols[at][1] if at >= 0 and symbols[at][0] else ""

