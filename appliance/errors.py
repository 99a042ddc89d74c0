# SPDX-License-Identifier: GPL-2.0-or-later
"""The error tree of the appliance: each error says the cause, the remedy and the exit code.

The other halves have roots of their own (`vmlink.errors.VmError`, `ebpf.errors.BpfError`) of the same shape:
`message` is the cause, `hint` the remedy.
"""

from typing import Any, ClassVar

from appliance.exits import Exit


class HoldfastError(Exception):
    """A foreseeable fault. `message`: the cause in one line; `hint`: what to do about it, may be empty."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[Exit] = Exit.DEGRADED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def details(self) -> dict[str, Any]:
        """What programs may want to know beyond message and hint."""
        return {}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UsageError(HoldfastError):
    """The command line asks for something that does not exist."""

    code = "usage"
    exit_code = Exit.USAGE


class ConfigError(HoldfastError):
    """The configuration is wrong; `file`, `line` (from 1) and `key` say where, as far as that is known."""

    code = "config"
    exit_code = Exit.CONFIG

    def __init__(
        self, reason: str, hint: str = "", *, file: str = "", line: int | None = None, key: str = ""
    ) -> None:
        place = f"{file}:{line}" if file and line else file
        super().__init__(": ".join(part for part in (place, key, reason) if part), hint)
        self.reason, self.file, self.line, self.key = reason, file, line, key

    def details(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "key": self.key}


class Unreachable(HoldfastError):
    """The service does not answer on its control socket."""

    code = "unreachable"
    exit_code = Exit.UNREACHABLE


class BadData(HoldfastError):
    """Input or a reply from the other side cannot be understood."""

    code = "bad-data"


class Unavailable(HoldfastError):
    """Something that is needed is missing, in use, or refuses."""

    code = "unavailable"


class NoPermission(HoldfastError):
    """The caller lacks a privilege."""

    code = "no-permission"
    exit_code = Exit.NO_PERMISSION


class Unsafe(HoldfastError):
    """Refused: it could lose acknowledged state or make two speakers."""

    code = "unsafe"
    exit_code = Exit.UNSAFE


class TimedOut(HoldfastError):
    """What was waited for did not happen in time."""

    code = "timeout"
    exit_code = Exit.TIMEOUT


def from_code(code: str, message: str, hint: str) -> HoldfastError:
    """The error of class `code` as a service reported it; an unknown code gives the root class."""
    kinds: dict[str, type[HoldfastError]] = {kind.code: kind for kind in HoldfastError.__subclasses__()}
    return kinds.get(code, HoldfastError)(message, hint)


def told(error: Exception) -> str:
    """Cause and remedy of an error of any half, in one line."""
    hint = getattr(error, "hint", "")
    return getattr(error, "message", str(error)) + (f" ({hint})" if hint else "")
