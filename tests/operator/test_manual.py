# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages: read by man without a complaint, and saying what the program says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from appliance import config, registry
from appliance.cli import help, manual, settings_page
from appliance.exits import Exit
from appliance.registry import Kind

PAGES = manual.pages()
each_page = pytest.mark.parametrize("name", sorted(PAGES))


def rendered(path: Path) -> str:
    """What a reader sees, in one line."""
    command = ["man", "-l", "--warnings", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True,
                          env={**os.environ, "MANWIDTH": "200", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""})
    assert done.stderr == ""
    return re.sub(r"\s+", " ", done.stdout.replace("‐ ", "").replace("−", "-").replace("‐", "-"))


@pytest.fixture
def page(name: str, tmp_path: Path) -> Path:
    path = tmp_path / name
    path.write_text(PAGES[name])
    return path


@each_page
@pytest.mark.skipif(not shutil.which("mandoc"), reason="needs mandoc")
def test_it_is_well_formed(page: Path) -> None:
    done = subprocess.run(["mandoc", "-Tlint", "-W", "warning", str(page)], capture_output=True, text=True, timeout=60)
    # It has no date on purpose.
    assert [line for line in done.stdout.splitlines() if "missing date" not in line] == []


@each_page
@pytest.mark.skipif(not shutil.which("man"), reason="needs man")
def test_man_shows_it(name: str, page: Path) -> None:
    text = rendered(page)
    assert all(title in text for title in ("NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"))
    if name == "holdfast.8":
        for verb in registry.every():
            if verb.page == "holdfast":
                assert f"holdfast {verb.name}" in text
                for argument in verb.arguments:
                    assert help.head(argument) in text and argument.help in text, argument
        assert all(f" {code.value} " in text for code in Exit)


def test_every_setting_is_in_the_page_of_the_configuration(tmp_path: Path) -> None:
    page = PAGES["holdfast.toml.5"]
    for _, section in settings_page.sections(config.Config):
        for setting in section.__struct_fields__:
            assert f"{setting} = ".replace("-", "\\-") in page or settings_page.inner(section.__annotations__[setting])


def test_the_example_of_a_configuration_is_correct(tmp_path: Path) -> None:
    """But for files that are not here."""
    text = settings_page.EXAMPLE
    for file in re.findall(r'"(/[^"]+)"', text):
        (tmp_path / Path(file).name).write_bytes(bytes(32))
        text = text.replace(file, str(tmp_path / Path(file).name))
    (tmp_path / "holdfast.toml").write_text(text)
    found = config.load(tmp_path)
    assert (found.host.name, list(found.vm)) == ("alpha", ["web1"])


def test_no_page_names_a_verb_or_an_option_that_is_not_there() -> None:
    options = {way for verb in registry.every() for argument in verb.all_arguments if argument.is_option
               for way in (argument.name, argument.short)}
    for name, text in PAGES.items():
        said = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.replace("\\-", "-")))
        assert said <= options, name
    assert {argument.kind for verb in registry.every() for argument in verb.arguments} <= set(Kind)
