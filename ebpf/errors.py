# SPDX-License-Identifier: GPL-2.0-or-later
"""The error of the kernel half."""


class BpfError(Exception):
    """A packet program cannot be loaded or attached. `message`: the cause; `hint`: the remedy, or empty."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
