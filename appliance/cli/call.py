# SPDX-License-Identifier: GPL-2.0-or-later
"""One verb as it was called: its arguments, the service it asks, the screen it prints to."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from appliance.cli.screen import Screen
from appliance.errors import Unsafe
from appliance.registry import CONTROL_VARIABLE, DEFAULT_CONTROL, Verb

TIMEOUT = 60.0
"""Seconds for what may have to wait for both hosts."""


@dataclass(frozen=True)
class Call:
    """See the module."""

    verb: Verb
    args: argparse.Namespace
    screen: Screen

    @property
    def control(self) -> str:
        """Path of the service's control socket."""
        return str(getattr(self.args, "control", None) or os.environ.get(CONTROL_VARIABLE) or DEFAULT_CONTROL)

    def ask(self, service: str = "", timeout: float = TIMEOUT, **words: Any) -> dict[str, Any]:
        """What the service answers to this verb, or to another one of it. Raises HoldfastError."""
        from appliance.control import client

        return client.call(self.control, service or self.verb.service, timeout=timeout, **words)

    def stream(self, service: str = "", **words: Any) -> Iterator[dict[str, Any]]:
        """The items of a streaming verb, as they come. Raises HoldfastError."""
        from appliance.control import client

        return client.stream(self.control, service or self.verb.service, **words)

    def show(self, document: dict[str, Any], text: str | Callable[[], str]) -> None:
        """Print `document` where JSON was asked for, `text` otherwise."""
        self.screen.show(document, text)

    def run(self) -> int:
        """Do it, once it is confirmed; returns the exit code. Raises HoldfastError."""
        self._confirm()
        if self.verb.run is not None:
            return self.verb.run(self)
        reply = self.ask(**self._words())
        assert self.verb.render is not None
        render = self.verb.render
        self.show(reply, lambda: render(reply, self))
        return self.verb.code(reply)

    def _words(self) -> dict[str, Any]:
        """What the service is told: the verb's own arguments."""
        return {argument.key: getattr(self.args, argument.key) for argument in self.verb.arguments}

    def _confirm(self) -> None:
        question = self.verb.unsafe(self.args) if self.verb.unsafe else None
        if question is None or self.args.yes:
            return
        answer = self.screen.confirms(f"{question} Do it?")
        if answer is None:
            reason = f"{question[:1].lower()}{question[1:]}".rstrip(".")
            raise Unsafe(f"{self.verb.name} asks first: {reason}", "repeat it with --yes if that is meant")
        if not answer:
            raise Unsafe(f"{self.verb.name} was not confirmed", "nothing was done")


