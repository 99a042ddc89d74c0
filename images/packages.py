# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages for the images: fetched with apt into a cache, unpacked into a private root, never installed here.

Only the standard library is used, here and in all of images/: it runs before the project's environment is there.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

TIMEOUT = 600.0  # seconds, for each command: a download on a slow line is the longest


class BuildError(Exception):
    """The image cannot be built; the message says why and what to do."""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a command to its end and returns its output. Raises BuildError with its last words."""
    try:
        done = subprocess.run(
            [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT
        )
    except FileNotFoundError as error:
        raise BuildError(f"{command[0]} is not installed: run `make setup` first") from error
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def listed(file: Path) -> list[str]:
    """The packages that a recipe's list names."""
    lines = file.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fetch(cache: Path, names: list[str]) -> dict[str, Path]:
    """Returns the archive of every package by name, from the cache or else from the distribution."""
    cache.mkdir(parents=True, exist_ok=True)
    if any(newest(cache, name) is None for name in with_kernel(cache, names)):
        try:
            download(cache, names)
        except BuildError:
            # No package lists, or lists that are behind the archive.
            run("apt-get", "update")
            download(cache, names)
    found = {name: newest(cache, name) for name in with_kernel(cache, names)}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise BuildError(f"apt-get download gave no {', '.join(missing)}")
    return {name: path for name, path in sorted(found.items()) if path is not None}


def newest(cache: Path, name: str) -> Path | None:
    """The most recently downloaded archive of a package."""
    return max(cache.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime, default=None)


def with_kernel(cache: Path, names: list[str]) -> list[str]:
    """The names, and the kernel that the meta-package (if it is there) stands for."""
    metas = [name for name in names if name.startswith("linux-image-")]
    kernels = []
    for meta in metas:
        if (archive := newest(cache, meta)) is not None:
            kernels.append(kernel_name(run("dpkg-deb", "--field", archive, "Depends")))
    return names + kernels


def kernel_name(depends: str) -> str:
    match = re.search(r"linux-image-[0-9][^ ,]*", depends)
    if match is None:
        raise BuildError(f"the kernel's meta-package names no kernel: {depends.strip()}")
    return match.group()


def download(cache: Path, names: list[str]) -> None:
    fetcher = ("apt-get", "-o", "APT::Sandbox::User=root", "download")
    run(*fetcher, *names, cwd=cache)
    run(*fetcher, *with_kernel(cache, names), cwd=cache)


def unpack(archives: Iterable[Path], root: Path) -> None:
    for archive in archives:
        run("dpkg-deb", "--extract", archive, root)


def versions(archives: dict[str, Path]) -> dict[str, str]:
    """The version of every package, from the name of its archive."""
    return {name: path.name.split("_")[1].replace("%3a", ":") for name, path in archives.items()}
