# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages, made from the registry of verbs and the schema of the configuration: python -m appliance.cli.manual
--out DIR."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance import __version__, registry
from appliance.cli import help, settings_page
from appliance.cli.roff import Page
from appliance.exits import MEANING
from appliance.registry import Access, Verb

ABOUT = """\
Two hosts hold the same VM behind one IP and one MAC. Every few milliseconds a checkpoint goes from the host that runs
it to the other; what the VM sends is held until the checkpoint that sent it is safe there. When a host dies, the other
goes on from the last checkpoint. holdfast runs the service of a host, looks at it and gives it orders. Every verb works
on either host."""
FILES = (("/etc/holdfast/*.toml", "the configuration; see holdfast.toml(5)"),
         (registry.DEFAULT_CONTROL, "the control socket of the service"),
         ("/var/lib/holdfast", "what is remembered over a reboot: terms, roles, the history"))
ENVIRONMENT = ((registry.CONTROL_VARIABLE, "the control socket, where --control is not given"),
               ("NO_COLOR", "when set, no colour unless --color=always asks for it"))
SHARED = (registry.CONFIRMED, registry.JSON, registry.PRETTY, registry.COLOUR, registry.CONTROL)
_TITLES = {Access.GROUP: "VERBS THAT LOOK", Access.ROOT: "VERBS THAT ORDER", Access.LOCAL: "OTHER VERBS"}


def pages() -> dict[str, str]:
    """Each page by its file name."""
    found = {"holdfast.8": _holdfast(), "holdfast.toml.5": settings_page.page()}
    for name in sorted({verb.page for verb in registry.every()} - {"holdfast"}):
        found[f"{name}.8"] = _of_page(name, [verb for verb in registry.every() if verb.page == name])
    return found


def _see_also(page: Page, own: str) -> None:
    names = sorted({verb.page for verb in registry.every()} - {own})
    page.heading("SEE ALSO")
    page.text(", ".join([*(f"{name}(8)" for name in names), "holdfast.toml(5)"]))


def _holdfast() -> str:
    page = Page("holdfast", 8, "keeps a running virtual machine alive when its host dies")
    page.heading("SYNOPSIS")
    page.synopsis("holdfast VERB ...")
    page.heading("DESCRIPTION")
    page.text(ABOUT)
    for access, title in _TITLES.items():
        page.heading(title)
        for verb in registry.every():
            if verb.access is access and verb.page == "holdfast":
                _verb(page, verb)
    page.heading("OPTIONS OF MANY VERBS")
    for argument in SHARED:
        page.item(help.head(argument), argument.help)
    page.heading("EXIT STATUS")
    for code, meaning in MEANING.items():
        page.item(str(code.value), meaning)
    page.heading("ENVIRONMENT")
    for name, meaning in ENVIRONMENT:
        page.item(name, meaning)
    page.heading("FILES")
    for name, meaning in FILES:
        page.item(name, meaning)
    _see_also(page, "holdfast")
    return page.done(__version__)


def _verb(page: Page, verb: Verb) -> None:
    page.subheading(verb.name)
    _about(page, verb)
    for command, why in verb.examples:
        page.example(command, why)


def _about(page: Page, verb: Verb) -> None:
    page.synopsis(help.synopsis(verb, shared=False))
    page.text(f"{verb.summary[:1].upper()}{verb.summary[1:]}.")
    if verb.aliases:
        page.text(f"The same: {', '.join(verb.aliases)}.")
    for paragraph in filter(None, verb.text.split("\n\n")):
        page.text(paragraph)
    for argument in verb.arguments:
        page.item(help.head(argument), argument.help)
    if verb.exits:
        page.text("Exit status: " + "; ".join(f"{code.value}: {meaning}" for code, meaning in verb.exits.items()) + ".")
    if verb.schema:
        page.text(f"With -j it prints {verb.schema}.")


def _of_page(name: str, verbs: Sequence[Verb]) -> str:
    """A page of its own for some verbs: the first is what it is about."""
    first = verbs[0]
    page = Page(name, 8, first.summary)
    page.heading("SYNOPSIS")
    for verb in verbs:
        page.synopsis(help.synopsis(verb))
    page.heading("DESCRIPTION")
    for paragraph in _paragraphs(first):
        page.text(paragraph)
    page.heading("OPTIONS")
    for argument in first.all_arguments:
        page.item(help.head(argument), argument.help)
    if len(verbs) > 1:
        page.heading("VERBS")
        for verb in verbs[1:]:
            _verb(page, verb)
    if first.examples:
        page.heading("EXAMPLES")
        for command, why in first.examples:
            page.example(command, why)
    page.heading("EXIT STATUS")
    for code, meaning in help.exit_codes(first):
        page.item(str(code.value), meaning)
    _see_also(page, name)
    return page.done(__version__)


def _paragraphs(verb: Verb) -> Iterator[str]:
    yield f"{verb.summary[:1].upper()}{verb.summary[1:]}."
    yield from filter(None, re.split(r"\n\n+", verb.text))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="manual", description="Write the manual pages.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (out / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
