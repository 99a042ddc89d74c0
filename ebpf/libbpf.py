# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads packet programs through libbpf and attaches them to TC hooks.

Nothing is pinned: a program lives as long as the filter that uses it, a filter as long as its device, and the
memory of a map as long as anybody maps it.
"""

import ctypes
import errno
import functools
import mmap
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from ebpf.errors import BpfError

Hook = Literal["ingress", "egress"]
_HOOK: dict[Hook, int] = {"ingress": 1, "egress": 2}
_LOG_BYTES = 64 << 10  # the end of a verifier log is what explains it

S = TypeVar("S", bound=ctypes.Structure)


class _TcHook(ctypes.Structure):
    _fields_ = [("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32)]


class _TcOpts(ctypes.Structure):
    _fields_ = [
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    ]


_PRINT = ctypes.CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
TAKE = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
"""Called with each record of a ring: context, address, length in bytes."""


class _Log:
    """The last words of libbpf: it prints, we keep, an error quotes."""

    def __init__(self, libc: Any) -> None:
        self._vsnprintf = libc.vsnprintf
        self._vsnprintf.argtypes = [c_char_p, c_size_t, c_char_p, c_void_p]
        self._text = ""
        self.callback = _PRINT(self._print)  # referenced for as long as libbpf may call it

    def _print(self, level: int, template: bytes, arguments: int) -> int:
        if level < 2:  # warnings and information; debug output is long
            line = ctypes.create_string_buffer(_LOG_BYTES)
            self._vsnprintf(line, _LOG_BYTES, template, arguments)
            self._text = (self._text + line.value.decode(errors="replace"))[-_LOG_BYTES:]
        return 0

    def take(self) -> str:
        text, self._text = self._text, ""
        return text.strip()


@functools.cache
def library() -> tuple[Any, _Log]:
    """libbpf, and what it says. Raises `BpfError`."""
    try:
        lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(f"libbpf cannot be loaded: {error}", "apt install libbpf1") from None
    for name, result, arguments in (
        ("bpf_object__open_file", c_void_p, [c_char_p, c_void_p]),
        ("bpf_object__load", c_int, [c_void_p]),
        ("bpf_object__close", None, [c_void_p]),
        ("bpf_object__find_program_by_name", c_void_p, [c_void_p, c_char_p]),
        ("bpf_program__fd", c_int, [c_void_p]),
        ("bpf_program__attach", c_void_p, [c_void_p]),
        ("bpf_link__destroy", c_int, [c_void_p]),
        ("bpf_object__find_map_by_name", c_void_p, [c_void_p, c_char_p]),
        ("bpf_map__fd", c_int, [c_void_p]),
        ("bpf_map__value_size", c_uint32, [c_void_p]),
        ("bpf_map__max_entries", c_uint32, [c_void_p]),
        ("bpf_map__reuse_fd", c_int, [c_void_p, c_int]),
        ("bpf_map_create", c_int, [c_int, c_char_p, c_uint32, c_uint32, c_uint32, c_void_p]),
        ("bpf_map_get_fd_by_id", c_int, [c_uint32]),
        ("bpf_map_update_elem", c_int, [c_int, c_void_p, c_void_p, c_uint64]),
        ("bpf_map_delete_elem", c_int, [c_int, c_void_p]),
        ("bpf_obj_get_info_by_fd", c_int, [c_int, c_void_p, POINTER(c_uint32)]),
        ("ring_buffer__new", c_void_p, [c_int, TAKE, c_void_p, c_void_p]),
        ("ring_buffer__consume", c_int, [c_void_p]),
        ("ring_buffer__free", None, [c_void_p]),
        ("bpf_tc_hook_create", c_int, [POINTER(_TcHook)]),
        ("bpf_tc_attach", c_int, [POINTER(_TcHook), POINTER(_TcOpts)]),
        ("bpf_tc_detach", c_int, [POINTER(_TcHook), POINTER(_TcOpts)]),
        ("libbpf_set_print", c_void_p, [_PRINT]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    log = _Log(ctypes.CDLL(None))
    lib.libbpf_set_print(log.callback)
    return lib, log


def failure(what: str, code: int) -> BpfError:
    """The error for libbpf's negative `code`, with what libbpf had to say about it."""
    log = library()[1].take()
    text = f"{what}: {os.strerror(-code)}"
    if code in (-errno.EPERM, -errno.EACCES) and "verifier" not in log.lower() and "processed" not in log:
        return BpfError(text, "needs CAP_BPF and CAP_NET_ADMIN: run as root")
    if log:
        text += "\n" + log
    return BpfError(text, "needs Linux 5.12 or newer with BPF_SYSCALL, NET_CLS_BPF and NET_SCH_INGRESS")


class Object:
    """One compiled object, loaded: its programs and maps by name."""

    def __init__(self, handle: int, path: Path) -> None:
        self._handle: int | None = handle
        self._path = path

    @classmethod
    def load(cls, path: Path, shared: dict[str, int] | None = None) -> Self:
        """Load every program of `path` into the kernel; blocking, some milliseconds. `shared`: maps of another
        object, by name, that this one uses as its own. Raises `BpfError`."""
        lib, log = library()
        log.take()
        ctypes.set_errno(0)
        handle = lib.bpf_object__open_file(os.fsencode(path), None)
        if not handle:
            raise failure(f"{path} cannot be opened", -(ctypes.get_errno() or errno.ENOENT))
        loaded = cls(handle, path)
        code = 0
        for name, fd in (shared or {}).items():
            code = code or lib.bpf_map__reuse_fd(loaded._find(name), fd)
        code = code or lib.bpf_object__load(handle)
        if code < 0:
            error = failure(f"{path.name} cannot be loaded into the kernel", code)
            loaded.close()
            raise error
        return loaded

    def program(self, name: str) -> int:
        """The descriptor of a program; it belongs to this object."""
        return int(library()[0].bpf_program__fd(self._program(name)))

    def attach_tracepoint(self, name: str) -> int:
        """Attach a program to the tracepoint that its section names; returns the link. Raises `BpfError`."""
        lib, log = library()
        log.take()
        ctypes.set_errno(0)
        link = lib.bpf_program__attach(self._program(name))
        if not link:
            raise failure(f"the tracepoint of {name} cannot be used", -(ctypes.get_errno() or errno.EINVAL))
        return int(link)

    def map(self, name: str) -> int:
        """The descriptor of a map; it belongs to this object."""
        return int(library()[0].bpf_map__fd(self._find(name)))

    def state(self, name: str, layout: type[S]) -> S:
        """The one value of the mapped array `name`, as live memory; outlives this object."""
        return self.states(name, layout)[0]

    def states(self, name: str, layout: type[S]) -> list[S]:
        """All values of the mapped array `name`, as live memory; they outlive this object."""
        lib = library()[0]
        found = self._find(name)
        size, entries = ctypes.sizeof(layout), lib.bpf_map__max_entries(found)
        if lib.bpf_map__value_size(found) != size:
            raise BpfError(
                f"{self._path.name} is not of this version: {name} differs", "run `make bpf` again"
            )
        try:
            memory = mmap.mmap(lib.bpf_map__fd(found), size * entries)
        except OSError as error:
            raise failure(f"the map {name} cannot be mapped", -(error.errno or errno.EINVAL)) from None
        return [layout.from_buffer(memory, size * number) for number in range(entries)]

    def close(self) -> None:
        """Let go of programs and maps; filters that are attached go on. Idempotent."""
        if self._handle is not None:
            library()[0].bpf_object__close(self._handle)
            self._handle = None

    def _program(self, name: str) -> int:
        found = library()[0].bpf_object__find_program_by_name(self._open(), name.encode())
        if not found:
            raise BpfError(f"{self._path.name} has no program {name!r}", "run `make bpf` again")
        return int(found)

    def _find(self, name: str) -> int:
        found = library()[0].bpf_object__find_map_by_name(self._open(), name.encode())
        if not found:
            raise BpfError(f"{self._path.name} has no map {name!r}", "run `make bpf` again")
        return int(found)

    def _open(self) -> int:
        if self._handle is None:
            raise BpfError(f"{self._path.name} is closed")
        return self._handle


def attach(ifindex: int, hook: Hook, program: int) -> None:
    """Make `program` (a descriptor) the filter of a TC hook, in the place of one attached before.

    Raises `BpfError` when the device is gone, or privilege or kernel support is missing.
    """
    lib, log = library()
    log.take()
    place = _TcHook(ctypes.sizeof(_TcHook), ifindex, _HOOK[hook], 0)
    code = lib.bpf_tc_hook_create(place)
    if code < 0 and code != -errno.EEXIST:
        raise failure(f"no TC hook on interface {ifindex}", code)
    replace = 1
    options = _TcOpts(ctypes.sizeof(_TcOpts), program, replace, 0, 1, 1)
    code = lib.bpf_tc_attach(place, options)
    if code < 0:
        raise failure(f"the program cannot be attached to the {hook} of interface {ifindex}", code)
    log.take()
