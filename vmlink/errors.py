# SPDX-License-Identifier: GPL-2.0-or-later
"""The one error that the VM half raises for a foreseeable fault."""

from __future__ import annotations


class VmError(Exception):
    """`message` is the cause in one sentence, `hint` the remedy (may be empty)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
