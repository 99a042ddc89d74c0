# SPDX-License-Identifier: GPL-2.0-or-later
"""holdfast.toml(5), made from the classes of the configuration."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance import __version__
from appliance.cli.roff import Page
from appliance.config import Config
from appliance.settings import Address, Bytes, FilePath, Mac, Seconds, Section, marks, plain
from appliance.units import format_duration, format_size

ABOUT = """\
All files of the directory are read as one, in the order of their names. The format is TOML. Both hosts of a pair have
the same [vm.NAME] tables; [host], [peer] and [[link]] are each host's own. An unknown key is an error, as is a number
without its unit. holdfast check-config says what is wrong, with file, line and key.

A duration is text such as "25ms" or "1.5s" (us, ms, s, min, h); a size is text such as "128MiB" (B, KiB, MiB, GiB,
TiB); a path is relative to the directory of the configuration."""
EXAMPLE = """\
[host]
name = "alpha"

[peer]
name = "beta"

[[link]]
name = "link0"
interface = "enp5s0"
address = "169.254.70.1"
peer = "169.254.70.2"

[arbiter]
kind = "witness"
address = "192.0.2.5:7790"
key_file = "/etc/holdfast/witness.key"

[vm.web1]
home = "alpha"
memory = "2GiB"
mac = "52:54:00:12:34:56"
ip = ["192.0.2.10"]
bridge = "br0"
kernel = "/srv/web1/vmlinuz"
initrd = "/srv/web1/initrd.img"
append = "console=ttyS0"
"""
_NAMES = {Seconds: "duration", Bytes: "size", Mac: "MAC address", Address: "IP address", FilePath: "path"}


def page() -> str:
    """The whole page."""
    page = Page("holdfast.toml", 5, "configuration of a holdfast host")
    page.heading("SYNOPSIS")
    page.text("/etc/holdfast/*.toml")
    page.heading("DESCRIPTION")
    for paragraph in ABOUT.split("\n\n"):
        page.text(paragraph)
    for title, section in sections(Config):
        page.heading(title)
        page.text(_about(section))
        for item in msgspec.structs.fields(section):
            if inner(item.type) is None:
                page.item(f"{item.name} = {_kind(item.type)}", _says(item))
    page.heading("EXAMPLE")
    page.verbatim(EXAMPLE)
    page.heading("SEE ALSO")
    page.text("holdfast(8)")
    return page.done(__version__)


def inner(kind: Any) -> type[Section] | None:
    """The section that a key of this type is, or holds."""
    for part in (plain(kind), *typing.get_args(kind)):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def sections(kind: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """Every table that can be written, with its title."""
    for item in msgspec.structs.fields(kind):
        section = inner(item.type)
        if section is not None:
            title = (section.__doc__ or "").partition(":")[0]
            yield title, section
            yield from sections(section)


def _about(section: type[Section]) -> str:
    text = " ".join((section.__doc__ or "").partition(":")[2].split())
    return text[:1].upper() + text[1:]


def _kind(kind: Any) -> str:
    """What has to be written, for people."""
    if kind in _NAMES:
        return _NAMES[kind]
    bare = plain(kind)
    if typing.get_origin(bare) is Literal:
        return "|".join(f'"{word}"' for word in typing.get_args(bare))
    if typing.get_origin(bare) is tuple:
        return f"list of {_kind(typing.get_args(bare)[0])}"
    for name, known in _NAMES.items():
        wanted = [mark.extra for mark in marks(name)]
        if any(mark.extra in wanted for mark in marks(kind) if mark.extra):
            return known
    if any(mark.extra for mark in marks(kind)):
        return "text"
    return {str: "text", int: "whole number", float: "number", bool: "true|false"}.get(bare, "value")


def _says(item: msgspec.structs.FieldInfo) -> str:
    said = next((mark.description for mark in marks(item.type) if mark.description), "")
    text = said[:1].upper() + said[1:] + "."
    if item.required:
        return f"{text} It must be given."
    if item.default in (None, "", ()):
        return text
    return f"{text} {_default(item)} if not given."


def _default(item: msgspec.structs.FieldInfo) -> str:
    value = item.default
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return str(value)
    kind = _kind(item.type)
    if kind == "duration":
        return format_duration(value)
    return format_size(value) if kind == "size" else f"{value:g}" if isinstance(value, float) else str(value)
