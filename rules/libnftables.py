# SPDX-License-Identifier: GPL-2.0-or-later
"""libnftables, through ctypes: runs text as one transaction in the network namespace it was opened in."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import socket
import threading
from ctypes import c_bool, c_char_p, c_int, c_uint, c_void_p
from typing import Any, Self

from rules.errors import RulesError

NETLINK_NETFILTER = 12
_JSON = 1 << 4
_NO_RIGHT = "run as root, or with CAP_NET_ADMIN"
_NO_KERNEL = "the kernel needs nf_tables with the families inet and bridge (CONFIG_NF_TABLES, " \
             "CONFIG_NF_TABLES_INET, CONFIG_NF_TABLES_BRIDGE)"


@functools.cache
def _library() -> Any:
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise RulesError(f"libnftables cannot be loaded: {error}", "apt install libnftables1") from None
    for name, result, arguments in (
        ("nft_ctx_new", c_void_p, [c_uint]),
        ("nft_ctx_free", None, [c_void_p]),
        ("nft_ctx_buffer_output", c_int, [c_void_p]),
        ("nft_ctx_buffer_error", c_int, [c_void_p]),
        ("nft_ctx_get_output_buffer", c_char_p, [c_void_p]),
        ("nft_ctx_get_error_buffer", c_char_p, [c_void_p]),
        ("nft_ctx_set_dry_run", None, [c_void_p, c_bool]),
        ("nft_ctx_output_set_flags", None, [c_void_p, c_uint]),
        ("nft_run_cmd_from_buffer", c_int, [c_void_p, c_char_p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def netlink() -> socket.socket:
    """A socket to the packet filter of the calling thread's network namespace. Raises RulesError."""
    try:
        return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    except OSError as error:
        raise RulesError(f"the kernel has no packet filter to talk to: {error.strerror}", _NO_KERNEL) from None


class Nftables:
    """One connection. It stays in the namespace of the thread that made it, whichever thread uses it."""

    def __init__(self) -> None:
        netlink().close()  # where that fails, the library would end the process
        self._lock = threading.Lock()
        self._lib = _library()
        self._context: int | None = self._lib.nft_ctx_new(0)
        if not self._context or self._lib.nft_ctx_buffer_output(self._context) \
                or self._lib.nft_ctx_buffer_error(self._context):
            raise RulesError("libnftables does not start", "is there memory left?")

    def run(self, text: str, *, check: bool = False) -> str:
        """Run `text` as one transaction and return what it prints; blocking, about a millisecond.

        check: the kernel judges it and nothing changes. Raises RulesError; then nothing has changed either.
        """
        return self._run(text, check, 0)

    def query(self, text: str) -> list[dict[str, Any]]:
        """What a `list` command says, as nftables' JSON objects."""
        answer = json.loads(self._run(text, False, _JSON) or "{}")
        found: list[dict[str, Any]] = answer.get("nftables", [])
        return found

    def _run(self, text: str, check: bool, flags: int) -> str:
        if "\0" in text:
            raise RulesError("a zero byte in a ruleset", "this is a defect: please report it")
        with self._lock:
            if self._context is None:
                raise RulesError("the packet filter is closed", "this is a defect: please report it")
            lib, context = self._lib, self._context
            lib.nft_ctx_set_dry_run(context, check)
            lib.nft_ctx_output_set_flags(context, flags)
            failed = lib.nft_run_cmd_from_buffer(context, text.encode())
            said = lib.nft_ctx_get_error_buffer(context) or b""
            printed = lib.nft_ctx_get_output_buffer(context) or b""
        if failed:
            raise _refusal(bytes(said).decode(errors="replace"))
        return bytes(printed).decode(errors="replace")

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            if self._context is not None:
                self._lib.nft_ctx_free(self._context)
                self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _refusal(said: str) -> RulesError:
    lines = [line.strip() for line in said.splitlines() if "rror" in line] or [said.strip() or "no reason given"]
    cause = lines[0].partition("Error: ")[2] or lines[0]
    hint = _NO_RIGHT if "permitted" in cause and os.geteuid() else _NO_KERNEL
    return RulesError(f"nftables refused the rules: {cause}", hint)
