# SPDX-License-Identifier: GPL-2.0-or-later
"""The error of this part: `message` is the cause, `hint` the remedy."""


class RulesError(Exception):
    """The host's packet filter cannot be set as asked, or what was asked makes no sense."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message
