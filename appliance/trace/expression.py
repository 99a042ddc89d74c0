# SPDX-License-Identifier: GPL-2.0-or-later
"""Filter expressions of tcpdump, compiled by libpcap for Ethernet."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int, c_uint, c_uint32, c_void_p
from typing import Any

from appliance.errors import Unavailable, UsageError
from ebpf.trace import FILTER, Instruction

_ETHERNET = 1  # DLT_EN10MB
_SNAP = 262144  # bytes; what tcpdump assumes
_NO_NETMASK = 0xFFFFFFFF


class _Program(ctypes.Structure):
    bf_len: int
    bf_insns: Any

    _fields_ = [("bf_len", c_uint), ("bf_insns", POINTER(Instruction))]


@functools.cache
def _libpcap() -> Any:
    try:
        lib = ctypes.CDLL("libpcap.so.0.8")
    except OSError:
        raise Unavailable("filter expressions need libpcap", "apt install libpcap0.8") from None
    for name, result, arguments in (
        ("pcap_open_dead", c_void_p, [c_int, c_int]),
        ("pcap_compile", c_int, [c_void_p, POINTER(_Program), c_char_p, c_int, c_uint32]),
        ("pcap_geterr", c_char_p, [c_void_p]),
        ("pcap_freecode", None, [POINTER(_Program)]),
        ("pcap_close", None, [c_void_p]),
        ("bpf_filter", c_uint, [c_void_p, c_char_p, c_uint, c_uint]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


class Expression:
    """A compiled expression. Raises UsageError with libpcap's words for one that makes no sense."""

    def __init__(self, words: Sequence[str]) -> None:
        lib = _libpcap()
        self.text = " ".join(words)
        handle = lib.pcap_open_dead(_ETHERNET, _SNAP)
        program = _Program()
        try:
            if lib.pcap_compile(handle, ctypes.byref(program), self.text.encode(), 1, _NO_NETMASK):
                cause = lib.pcap_geterr(handle).decode(errors="replace")
                raise UsageError(f"the filter {self.text!r}: {cause}", "see pcap-filter(7) for what can be said")
            found = [program.bf_insns[at] for at in range(program.bf_len)]
            self.instructions = [(one.code, one.jt, one.jf, one.k) for one in found]
            lib.pcap_freecode(ctypes.byref(program))
        finally:
            lib.pcap_close(handle)
        self._code = (Instruction * len(self.instructions))(*(Instruction(*one) for one in self.instructions))

    @property
    def fits(self) -> bool:
        """Can the kernel half run it? Else it is run here, on what was captured of each frame."""
        return len(self.instructions) <= FILTER

    def takes(self, frame: bytes, length: int) -> bool:
        """Does a frame of `length` bytes, of which this is the beginning, pass the filter?"""
        return bool(_libpcap().bpf_filter(self._code, frame, length, len(frame)))
