# SPDX-License-Identifier: GPL-2.0-or-later
"""A shared volume: where it is, checked, how QEMU reaches it, and by what two hosts know that they see the same one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vmlink.disk.spec import NAME, QUEUE, link
from vmlink.errors import VmError

ISCSI_PORT, NBD_PORT = 3260, 10809
"""What is assumed where none is given: RFC 7143, and the NBD project's doc/proto.md."""
REQUEST_TIMEOUT = 5
"""Seconds after which QEMU's iSCSI initiator gives a request up."""
_TARGET = re.compile(r"(iqn|eui|naa)\.[0-9A-Za-z.:-]{1,219}")


@dataclass(frozen=True)
class VolumeSpec:
    """One volume. `at`: iscsi://PORTAL[:PORT]/TARGET/LUN, nbd://HOST[:PORT]/EXPORT, or the path of a block device.

    `user`, and `secret`, a file with the password: what the iSCSI target wants to hear (CHAP). Only `name` has to be
    equal on both hosts, and the volume itself.
    """

    name: str
    at: str
    user: str = ""
    secret: Path | None = None

    def check(self) -> None:
        """Raises VmError for what cannot work whatever answers there."""
        if not NAME.fullmatch(self.name):
            raise VmError(f"volume name {self.name!r} is not usable", "use up to 16 small letters and digits")
        self.node("checked")
        if (self.secret is None) is not (self.user == ""):
            raise VmError(f"{self}: user= and secret= belong together", "give both, or neither")
        if self.secret is not None and not self.at.startswith("iscsi:"):
            raise VmError(f"{self}: only an iSCSI target asks for a user", "remove user= and secret=")

    def node(self, node: str) -> dict[str, object]:
        """The block node of this name that reaches it. Raises VmError when `at` makes no sense."""
        if self.at.startswith("/"):
            # Two hosts write to it in turn: what keeps them apart is the term, not a lock on the file.
            return {"driver": "host_device", "node-name": node, "filename": self.at, "locking": "off", "aio": "native",
                    "cache": {"direct": True}}
        scheme, host, port, path = self._parts()
        if scheme == "nbd":
            return {"driver": "nbd", "node-name": node, "export": unquote(path), "reconnect-delay": 0,
                    "server": {"type": "inet", "host": host, "port": str(port or NBD_PORT)}}
        target, _, lun = path.rpartition("/")
        access = {"user": self.user, "password-secret": f"{self.name}-secret"} if self.user else {}
        literal = f"[{host}]" if ":" in host else host
        return {"driver": "iscsi", "node-name": node, "transport": "tcp", "portal": f"{literal}:{port or ISCSI_PORT}",
                "target": target, "lun": int(lun), "timeout": REQUEST_TIMEOUT, **access}

    def _parts(self) -> tuple[str, str, int | None, str]:
        try:
            url = urlsplit(self.at)
            scheme, host, port, path = url.scheme, url.hostname or "", url.port, url.path.removeprefix("/")
        except ValueError as error:
            raise VmError(f"{self}: {error}", _FORMS) from None
        target, _, lun = path.rpartition("/")
        fits = bool(path) if scheme == "nbd" else bool(_TARGET.fullmatch(target) and re.fullmatch(r"\d{1,5}", lun))
        if scheme not in ("iscsi", "nbd") or not host or not fits or url.query or url.fragment or url.username:
            raise VmError(f"{self}: that is no place of a volume", _FORMS)
        return scheme, host, port, path

    def objects(self) -> list[dict[str, object]]:
        """The objects that QEMU needs before the node. The password is on no command line; the end of the line that an
        editor leaves in its file is no part of it. Raises VmError when the file cannot be read."""
        if self.secret is None:
            return []
        try:
            password = self.secret.read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise VmError(f"{self}: the password in {self.secret} cannot be read: {error}",
                          "correct secret=, or the permissions of the file") from None
        return [{"qom-type": "secret", "id": f"{self.name}-secret", "data": password}]

    def identity(self, size: int) -> str:
        """Equal on two hosts that see the same volume, of `size` bytes. The portal that leads to an iSCSI target may
        differ: its name is its own in all the world; an NBD export has no such name. Blocks for a moment. Raises
        VmError for a device that is not there."""
        if self.at.startswith("/"):
            return f"device {_identity_of_device(self)} of {size} bytes"
        scheme, host, port, path = self._parts()
        return f"{path if scheme == 'iscsi' else f'{host}:{port or NBD_PORT}/{path}'} of {size} bytes"

    def __str__(self) -> str:
        return f"volume {self.name}, {self.at}"


def arguments(volume: VolumeSpec, server: str) -> list[str]:
    """QEMU's arguments for the VM's device; `server`: the abstract address of the server (`vmlink/disk/server.py`)."""
    node = link(volume.name, volume.name, server)
    return ["-blockdev", json.dumps(node),
            "-device", f"virtio-blk-pci,id={volume.name}-dev,drive={volume.name},serial={volume.name},"
                       f"queue-size={QUEUE}"]


_FORMS = "use iscsi://PORTAL/TARGET/LUN, nbd://HOST/EXPORT, or the path of a block device"


def _identity_of_device(volume: VolumeSpec) -> str:
    """What the device says that it is: the first of its names that is not this host's own invention."""
    try:
        facts = os.stat(volume.at)
    except OSError as error:
        raise VmError(f"{volume}: {error.strerror}", "look at the storage below it") from None
    if not stat.S_ISBLK(facts.st_mode):
        raise VmError(f"{volume}: no block device", "use disk tables for images that each host has for itself")
    place = Path(f"/sys/dev/block/{os.major(facts.st_rdev)}:{os.minor(facts.st_rdev)}").resolve()
    part = ""
    with contextlib.suppress(OSError):  # a part of a device has no name of its own
        part = f", partition {(place / 'partition').read_text().strip()} from {(place / 'start').read_text().strip()}"
        place = place.parent
    for source in ("wwid", "device/wwid", "dm/uuid", "serial", "loop/backing_file"):
        with contextlib.suppress(OSError):
            if said := (place / source).read_text(errors="replace").strip():
                return said + part
    raise VmError(f"{volume}: the device has neither a WWID nor a serial number: nobody can tell whether the "
                  "other host has the same one", "reach the volume by iscsi:// or nbd://")
