# SPDX-License-Identifier: GPL-2.0-or-later
"""Where both hosts and all VMs stand, kept up to date by the service's events, for the prompt and the bottom bar."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from prompt_toolkit.formatted_text import StyleAndTextTuples

from appliance import control
from appliance.cli.events import END_OF_STATE, LOST, STATE
from appliance.cli.screen import BAD, GOOD
from appliance.core import Phase
from appliance.errors import HoldfastError

AGAIN = 0.5
"""Seconds between two tries to reach a service that does not answer."""
_PHASES = frozenset(Phase)
_SAFE = ("protected", "standby")


class Situation:
    """See the module. `changed` is called, from another thread, when there is something new to show; `happened` with
    each event that is worth a line."""

    def __init__(self, path: str, changed: Callable[[], None], happened: Callable[[dict[str, Any]], None]) -> None:
        self._path, self._changed, self._happened = path, changed, happened
        self.host, self.peer, self.peer_state = "", "", ""
        self.vms: dict[str, dict[str, Any]] = {}
        """By name: role, phase, term and the peer's own, as this host knows it."""
        self.links: dict[str, str] = {}
        self.answers = False
        """Does the service answer?"""
        self._whole = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Listen no more; the thread may outlive this until its service says something."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                for event in control.stream(self._path, "events"):
                    if self._ended.is_set():
                        return
                    self.hear(event)
                self.silent("the service ended")
            except HoldfastError as error:
                self.silent(error.message)
            self._ended.wait(AGAIN)

    def silent(self, reason: str) -> None:
        """The service does not answer."""
        if self.answers:
            self._happened({"event": "no-answer", "what": "service", "reason": reason})
        self.answers = self._whole = False
        self._changed()

    def hear(self, event: dict[str, Any]) -> None:
        """One event of the stream."""
        name, vm = str(event.get("event")), str(event.get("vm") or "")
        self.answers = True
        if name == STATE:
            self._is_so(event, vm)
        elif name == END_OF_STATE:
            self._whole = True
        elif name == LOST:
            self._happened(event)
        else:
            self._follow(event, name, vm)
            self._happened(event)
        if self._whole:
            self._changed()

    def _is_so(self, event: dict[str, Any], vm: str) -> None:
        match event.get("what"):
            case "host":
                self.host = str(event.get("host"))
                self.vms, self.links = {}, {}
            case "peer":
                self.peer, self.peer_state = str(event.get("peer")), str(event.get("state"))
            case "link":
                self._link(event, str(event.get("state")))
            case "vm":
                self.vms = {**self.vms, vm: dict(event)}

    def _follow(self, event: dict[str, Any], name: str, vm: str) -> None:
        """What the event changes about what is known."""
        stands = self.vms.get(vm)
        if stands is not None and name in _PHASES:
            stands |= {key: event[key] for key in ("role", "term", "reason") if key in event} | {"phase": name}
        elif stands is not None and name == "peer-phase":
            stands["peer"] = {key: event.get(key) for key in ("role", "phase", "term")}
        elif name in ("peer-up", "peer-down"):
            self.peer_state = name.removeprefix("peer-")
            for each in self.vms.values() if name == "peer-down" else ():
                each["peer"] = None
        elif name in ("link-up", "link-down"):
            self._link(event, name.removeprefix("link-"))

    def _link(self, event: dict[str, Any], state: str) -> None:
        # A new dictionary: the other thread may be looking at the old one.
        self.links = {**self.links, str(event.get("link")): state}

    # --- what is shown ---

    def prompt(self) -> StyleAndTextTuples:
        """Host, role and state of its VMs."""
        if not self.answers or not self._whole:
            return [("", f"{self.host or 'holdfast'} "), ("class:bad", "no service"), ("", "> ")]
        roles = sorted({str(vm.get("role")) for vm in self.vms.values()})
        phases = [str(vm.get("phase")) for _, vm in sorted(self.vms.items())]
        worst = min(phases, key=lambda phase: (phase in _SAFE, kind(phase) != "bad"), default="no VM")
        role = roles[0] if len(roles) == 1 else "+".join(roles)
        return [("", f"{self.host} {role} "), (f"class:{kind(worst)}", worst), ("", "> ")]

    def bar(self) -> StyleAndTextTuples:
        """All VMs, on both hosts."""
        if not self.answers or not self._whole:
            return [("class:bad", " the service does not answer "), ("", f" {self._path}")]
        pieces: StyleAndTextTuples = []
        for name, vm in sorted(self.vms.items()):
            pieces += [("", f" {name}  {self.host} {vm.get('role')} "), _word(vm.get("phase"))]
            there = vm.get("peer")
            known = isinstance(there, dict) and self.peer_state == "up"
            pieces += [("", f"  {self.peer} {there['role']} "), _word(there["phase"])] if known and there else [
                ("", f"  {self.peer} "), _word("unknown")]
            pieces.append(("", f"  term {vm.get('term')}  |"))
        up = sum(state == "up" for state in self.links.values())
        pieces += [("", f" links {up}/{len(self.links)} "), _word(self.peer_state)]
        return pieces


def kind(word: str) -> str:
    """What a word means: good, bad or changing."""
    return "good" if word in GOOD else "bad" if word in BAD or word == "unknown" else "changing"


def _word(word: Any) -> tuple[str, str]:
    return f"class:{kind(str(word))}", str(word)
