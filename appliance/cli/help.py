# SPDX-License-Identifier: GPL-2.0-or-later
"""`holdfast help`: what the registry says, for people at a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from appliance import registry
from appliance.cli.call import Call
from appliance.errors import UsageError
from appliance.exits import MEANING, Exit
from appliance.registry import Access, Argument, Kind, Verb

WIDTH = 100
PURPOSE = "Keeps a running virtual machine alive when its host dies."
_GROUPS = {Access.GROUP: "Look (root, and the group of the service)", Access.ROOT: "Order (root)",
           Access.LOCAL: "On this machine"}
_DONE = {Exit.OK: "done", Exit.DEGRADED: "it could not be done; the message says why"}


def overview() -> str:
    """All verbs, a line each; those of several words are told by their first."""
    lines = ["usage: holdfast VERB ...", "", PURPOSE]
    for access, title in _GROUPS.items():
        shown: dict[str, str] = {}
        for verb in registry.every():
            if verb.access is access:
                first, _, rest = verb.name.partition(" ")
                shown[first if not rest else f"{first} ..."] = verb.summary if not rest else _families(first, access)
        lines += ["", f"{title}:", *_columns(list(shown.items()))]
    return "\n".join([*lines, "", "holdfast help VERB, holdfast help exit-codes and man holdfast say more."])


def _families(first: str, access: Access) -> str:
    return ", ".join(verb.name.partition(" ")[2] for verb in registry.every()
                     if verb.name.startswith(f"{first} ") and verb.access is access)


def of_group(first: str) -> str:
    """The verbs whose name begins with that word."""
    verbs = [verb for verb in registry.every() if verb.name.split()[0] == first]
    lines = _columns([(verb.name, verb.summary) for verb in verbs])
    return "\n".join([f"usage: holdfast {first} VERB ...", "", *lines])


def synopsis(verb: Verb, *, shared: bool = True) -> str:
    """The verb with its arguments, those that may be left out in brackets. `shared`: those that many have too."""
    arguments = verb.all_arguments if shared else verb.arguments
    return " ".join([f"holdfast {verb.name}", *(_usage(argument) for argument in arguments)])


def _usage(argument: Argument) -> str:
    if argument.kind is Kind.WORDS:
        return "-- COMMAND ..."
    if argument.kind is Kind.PHRASE:
        return argument.placeholder
    if not argument.is_option:
        return f"[{argument.placeholder}]" if argument.optional else argument.placeholder
    return f"[{argument.short or argument.name}{_value(argument)}]{' ...' if argument.many else ''}"


def _value(argument: Argument) -> str:
    if argument.kind is Kind.FLAG:
        return ""
    return f" [{argument.placeholder}]" if argument.bare is not None else f" {argument.placeholder}"


def head(argument: Argument) -> str:
    """How the argument is written where it is explained."""
    if not argument.is_option:
        return argument.placeholder
    return ", ".join(name for name in (argument.short, argument.name) if name) + _value(argument)


def exit_codes(verb: Verb) -> list[tuple[Exit, str]]:
    """What the verb's exit codes mean."""
    return [(code, verb.exits.get(code) or _DONE.get(code) or MEANING[code]) for code in verb.exit_codes]


def of_verb(verb: Verb) -> str:
    """Everything about one verb."""
    lines = textwrap.wrap(f"usage: {synopsis(verb)}", WIDTH, subsequent_indent=" " * 8, break_long_words=False,
                          break_on_hyphens=False)
    lines += ["", f"{verb.summary[:1].upper()}{verb.summary[1:]}."]
    if verb.aliases:
        lines += [f"The same: {', '.join(verb.aliases)}."]
    for paragraph in filter(None, verb.text.split("\n\n")):
        lines += ["", *textwrap.wrap(" ".join(paragraph.split()), WIDTH)]
    lines += ["", *_columns([(head(argument), argument.help) for argument in verb.all_arguments])]
    if verb.examples:
        lines += ["", "examples:", *_columns(list(verb.examples))]
    lines += ["", "exit codes:", *_columns([(str(code.value), meaning) for code, meaning in exit_codes(verb)])]
    if verb.schema:
        lines += ["", f"-j prints {verb.schema}."]
    return "\n".join(lines)


def exit_table() -> str:
    """All exit codes."""
    return "\n".join(_columns([(str(code.value), meaning) for code, meaning in MEANING.items()]))


def _columns(rows: list[tuple[str, str]]) -> Iterator[str]:
    wide = min(30, max((len(left) for left, _ in rows), default=0))
    for left, right in rows:
        wrapped = textwrap.wrap(right, WIDTH - wide - 4, break_on_hyphens=False) or [""]
        if len(left) > wide:
            yield f"  {left}"
            left = ""
        yield f"  {left:<{wide}}  {wrapped[0]}".rstrip()
        yield from (" " * (wide + 4) + line for line in wrapped[1:])


def _help(call: Call) -> int:
    words = call.args.words
    if not words:
        call.screen.say(overview())
    elif words == ["exit-codes"]:
        call.screen.say(exit_table())
    else:
        found = registry.find(words)
        if found is not None and found[1] == len(words):
            call.screen.say(of_verb(found[0]))
        elif len(words) == 1 and any(verb.name.split()[0] == words[0] for verb in registry.every()):
            call.screen.say(of_group(words[0]))
        else:
            raise UsageError(f"{' '.join(words)!r} is no verb", "holdfast help names all")
    return Exit.OK


VERBS = (
    Verb(
        "help", "what a verb does, how it is called and how it ends",
        arguments=(Argument("words", "a verb, or exit-codes; all verbs if not given", kind=Kind.VERB,
                            metavar="VERB|exit-codes", optional=True),),
        examples=(("holdfast help fence", "before you do it"), ("holdfast help exit-codes", "the table for scripts")),
        run=_help,
    ),
)
