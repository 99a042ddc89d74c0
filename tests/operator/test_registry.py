# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for every verb, because it is declared: a verb that is added is under these tests at once."""

from __future__ import annotations

import importlib
import itertools
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from appliance import registry
from appliance.cli import arguments, help, main
from appliance.exits import MEANING, Exit
from appliance.registry import Access, Argument, Kind, Verb

VERBS = list(registry.every())
NAMES = [verb.name for verb in VERBS]
every_verb = pytest.mark.parametrize("verb", VERBS, ids=NAMES)
VALUES = {Kind.TEXT: "x", Kind.VM: "web1", Kind.HOST: "alpha", Kind.COUNT: "3", Kind.SECONDS: "1.5s", Kind.FILE: "/f",
          Kind.DIRECTORY: "/d", Kind.VERB: "status"}


def value(argument: Argument) -> str:
    """Something that it accepts."""
    if argument.choices:
        return argument.choices[0]
    for text in (VALUES.get(argument.kind, ""), "25ms", "256MiB", "1.2", "1", "held"):
        try:
            if argument.read is not None:
                argument.read(text)
            return text
        except ValueError:
            continue
    raise AssertionError(f"nothing is known that {argument.name} accepts")


def test_a_name_is_of_one_verb() -> None:
    names = [name for verb in VERBS for name in verb.names]
    assert len(names) == len(set(names))


@every_verb
def test_it_is_found_by_each_of_its_names(verb: Verb) -> None:
    for name in verb.names:
        assert registry.find([*name.split(), "more"]) == (verb, len(name.split()))


@every_verb
def test_it_is_explained(verb: Verb) -> None:
    assert verb.summary and not verb.summary.endswith(".") and verb.summary[0].islower()
    said = help.of_verb(verb)
    for argument in verb.all_arguments:
        assert argument.help, argument
        assert help.head(argument) in said
    assert all(len(line) <= 120 for line in said.splitlines())
    assert verb.schema == "" or verb.schema in said


@every_verb
def test_its_examples_are_commands_that_it_understands(verb: Verb) -> None:
    for example, why in verb.examples:
        assert why
        lexer = shlex.shlex(example, posix=True, punctuation_chars="|&;<()")
        lexer.whitespace_split = True
        for mark, tokens in itertools.groupby(lexer, lambda token: set(token) <= set("|&;<()")):
            words = list(tokens)
            if not mark and words[0] == "holdfast":
                found = registry.find(words[1:])
                assert found, example
                arguments.read(found[0], words[1 + found[1]:])


@every_verb
def test_it_reads_every_argument(verb: Verb) -> None:
    words: list[str] = []
    for argument in sorted(verb.all_arguments, key=lambda one: one.kind is Kind.WORDS):
        if argument.kind is Kind.WORDS:
            words.append("word")
        elif argument.is_option:
            words += [argument.name] if argument.kind is Kind.FLAG else [argument.name, value(argument)]
        else:
            words.append(value(argument))
    read = arguments.read(verb, words)
    for argument in verb.all_arguments:
        assert getattr(read, argument.key) not in (None, False), argument


@every_verb
def test_it_refuses_what_it_does_not_know(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    json_too = ["-j"] if verb.schema else []
    assert main([*verb.name.split(), "--no-such-option", *json_too]) == Exit.USAGE
    said = capsys.readouterr()
    if verb.schema:
        assert json.loads(said.out)["error"]["code"] == "usage"
    else:
        assert said.out == "" and said.err.startswith("holdfast: ")


@every_verb
def test_help_is_the_same_by_either_way(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", *verb.name.split()]) == 0
    by_verb = capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main([*verb.name.split(), "--help"])
    assert ended.value.code == 0 and capsys.readouterr().out == by_verb


@every_verb
def test_what_it_needs_of_the_service_is_declared(verb: Verb) -> None:
    assert (verb.access is Access.LOCAL) == (verb.service == "")
    assert (verb.run is None) == (verb.render is not None)
    if verb.unsafe:
        assert "--yes" in [argument.name for argument in verb.all_arguments]
    assert verb.access is not Access.GROUP or registry.access(verb.service) is Access.GROUP


def test_only_what_reads_is_open_to_the_group() -> None:
    assert registry.access("fence") is registry.access("nothing of the kind") is Access.ROOT
    assert registry.access("status") is Access.GROUP


def only(verbs: list[Verb]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("verb", verbs, ids=[verb.name for verb in verbs])


@only([verb for verb in VERBS if verb.access is not Access.LOCAL and verb.schema])
def test_without_a_service_it_says_so(verb: Verb, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nobody = str(tmp_path / "none")
    words = [value(argument) for argument in verb.arguments if not argument.is_option and not argument.optional]
    words += ["--yes"] if verb.unsafe else []
    words += ["--timeout", "0.05s"] if any(argument.name == "--timeout" for argument in verb.arguments) else []
    expected = {Exit.UNREACHABLE, Exit.TIMEOUT} if "0.05s" in words else {Exit.UNREACHABLE}
    assert main([*verb.name.split(), *words, "--control", nobody, "-j"]) in expected
    assert json.loads(capsys.readouterr().out)["error"]["code"] in ("unreachable", "timeout")


@only([verb for verb in VERBS if verb.unsafe])
def test_an_unsafe_verb_is_not_done_unasked(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    words = [value(argument) for argument in verb.arguments if not argument.is_option and not argument.optional]
    assert main([*verb.name.split(), *words, "--control", "/nonexistent/never-asked", "-j"]) == Exit.UNSAFE
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "unsafe" and "--yes" in error["hint"]


def test_the_table_of_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert {code.value for code in Exit} == {0, 1, 2, 3, 64, 77, 78, 107, 124}
    assert main(["help", "exit-codes"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {code.value} " in said and meaning.split()[0] in said for code, meaning in MEANING.items())


def test_the_overview_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == Exit.USAGE
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name.split()[-1] in said for name in NAMES)
    assert main(["lab", "--help"]) == 0
    assert "lab fault" in capsys.readouterr().out


@pytest.mark.parametrize("source", registry.SOURCES)
def test_a_declaration_costs_little(source: str) -> None:
    """What is slow to import would be paid by every command."""
    importlib.import_module(source)  # it can be, and is compiled
    heavy = ("asyncio", "msgspec", "numpy", "psutil", "pyroute2", "scapy", "prompt_toolkit", "prometheus_client")
    script = f"import sys, {source}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
