# SPDX-License-Identifier: GPL-2.0-or-later
"""The configuration: what may stand in /etc/holdfast/*.toml, and how it is read and checked.

The classes below are the reference: every attribute is a key of the table of that name. Nothing is guessed:
an unknown key, a number without its unit, an address that cannot work or a missing file is a ConfigError
that names file, line, key and remedy.
"""

import difflib
import os
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from appliance import toml_tree
from appliance.arbiter import settings as arbiter
from appliance.arbiter.settings import Arbiter
from appliance.disk_settings import Disk
from appliance.disk_settings import faults as disk_faults
from appliance.health import settings as health_settings
from appliance.health.settings import Health
from appliance.metrics import settings as metrics_settings
from appliance.metrics.settings import Metrics
from appliance.settings import Address, Bytes, FilePath, Mac, Seconds, Section, marks, plain, says
from appliance.toml_tree import Key, Tree
from appliance.units import format_size
from appliance.volume_settings import Volume
from appliance.volume_settings import faults as volume_faults

DEFAULT_DIRECTORY = Path("/etc/holdfast")
PAGE = 4096
MIB = 1 << 20


class Host(Section, frozen=True, kw_only=True):
    """[host]: this host."""

    name: Annotated[str, says("this host; the other one's peer.name")]
    state_dir: Annotated[FilePath, says("what is remembered over a reboot: term and role")] = Path("/var/lib/holdfast")
    run_dir: Annotated[FilePath, says("control socket and consoles")] = Path("/run/holdfast")
    ram_dir: Annotated[FilePath, says("where guest memory lives: a tmpfs or hugetlbfs")] = Path("/dev/shm")
    group: Annotated[
        str, says("whose members may use the verbs that only read; root alone if there is no such group")] = "holdfast"
    memory_limit: Annotated[Bytes, says("for the memory of all VMs together; 0B: what the machine has")] = 0
    log: Annotated[
        Literal["debug", "info", "warning", "error"], says("the least severe message that is logged")] = "info"
    firewall: Annotated[
        Literal["auto", "required", "off"],
        says("packet filter rules on links and fronts; required: no start without them")] = "auto"


class Peer(Section, frozen=True, kw_only=True):
    """[peer]: the other host of the pair."""

    name: Annotated[str, says("the other host of the pair")]


class Link(Section, frozen=True, kw_only=True):
    """[[link]]: one dedicated connection to the peer; the first is preferred."""

    name: Annotated[str, says("what it is called in the status; each its own")]
    interface: Annotated[str, says("the network device")]
    address: Annotated[Address, says("this host's address on it")]
    peer: Annotated[Address, says("the other host's address on it")]
    port: Annotated[int, says("TCP port that both hosts use on it")] = 7780


class Timing(Section, frozen=True, kw_only=True):
    """[timing]: heartbeats."""

    hello: Annotated[Seconds, says("a heartbeat is sent this often on each link")] = 0.02
    timeout: Annotated[
        Seconds, says("silence on every link for this long means that the peer is down; more under jitter")] = 0.3
    timeout_max: Annotated[Seconds, says("the most that timeout grows to under jitter")] = 2.0
    lease: Annotated[Seconds, says("for how long an answer of the peer lets the VM speak; more under jitter")] = 0.08
    lease_max: Annotated[Seconds, says("the most that lease grows to under jitter")] = 0.3
    backoff: Annotated[
        Seconds, says("the longest that a backup that flaps waits for its next first copy; 0s: not at all")] = 30.0
    reconnect: Annotated[Seconds, says("between attempts to reach the peer")] = 0.1


class Epoch(Section, frozen=True, kw_only=True):
    """[vm.NAME.epoch]: when a checkpoint is taken."""

    mode: Annotated[
        Literal["adaptive", "fixed"],
        says("adaptive: output that waits ends an epoch; fixed: all are of one length")] = "adaptive"
    length: Annotated[Seconds, says("fixed: how long an epoch is")] = 0.025
    min: Annotated[Seconds, says("adaptive: output that waits ends an epoch, but not before this")] = 0.005
    max: Annotated[Seconds, says("adaptive: an epoch ends after this at the latest")] = 0.05
    pause_share: Annotated[float, says("adaptive: never more than this share of the time paused")] = 0.5
    in_flight: Annotated[int, says("epochs sent and not yet acknowledged")] = 3


class Limits(Section, frozen=True, kw_only=True):
    """[vm.NAME.limits]: bounds in bytes; at a bound the VM is slowed and the status says so."""

    held: Annotated[Bytes, says("output held at the gate")] = 64 * MIB
    in_flight: Annotated[Bytes, says("epochs sent and not yet acknowledged")] = 128 * MIB
    replay_log: Annotated[Bytes, says("received frames kept for replay")] = 4 * MIB
    disk: Annotated[Bytes, says("what it writes to its disks in one epoch")] = 64 * MIB
    copy_rate: Annotated[Bytes, says("what a copy of its disks may read in a second; 0B: as fast as it goes")] = 0


class Vm(Section, frozen=True, kw_only=True):
    """[vm.NAME]: a protected VM; both hosts hold the same text. [[vm.NAME.disk]]: its disks; [[vm.NAME.volume]]: its
    shared volumes."""

    home: Annotated[str, says("the host that starts it when neither remembers more")]
    memory: Annotated[Bytes, says("its RAM, in whole MiB")]
    mac: Annotated[Mac, says("its address on the network, whichever host runs it")]
    bridge: Annotated[str, says("the bridge of the production network, on both hosts")]
    kernel: Annotated[FilePath, says("what it boots")]
    initrd: Annotated[FilePath | None, says("its initial file system")] = None
    append: Annotated[str, says("kernel command line")] = ""
    vcpus: Annotated[int, says("virtual processors")] = 1
    ip: Annotated[tuple[Address, ...], says("its addresses: announced after a takeover")] = ()
    qemu: Annotated[str, says("the program, by path or as found in PATH")] = "qemu-system-x86_64"
    accel: Annotated[
        Literal["auto", "kvm", "tcg"], says("how its processors are made; auto: kvm where there is any")] = "auto"
    tracker: Annotated[
        Literal["auto", "uffd-wp", "compare"],
        says("how pages that changed are found; auto: uffd-wp where the kernel has it")] = "auto"
    epoch: Epoch = Epoch()
    limits: Limits = Limits()
    disk: tuple[Disk, ...] = ()
    volume: tuple[Volume, ...] = ()


class Config(Section, frozen=True, kw_only=True):
    """The whole configuration. `directory`: where it was read."""

    host: Host
    peer: Peer
    link: tuple[Link, ...]
    vm: dict[str, Vm]
    timing: Timing = Timing()
    arbiter: Arbiter = Arbiter()
    health: Health = Health()
    metrics: Metrics = Metrics()
    directory: Path = DEFAULT_DIRECTORY

    @property
    def control_path(self) -> Path:
        """The control socket of this host's service."""
        return self.host.run_dir / "control.sock"


S = TypeVar("S", bound=Section)
SECTIONS = ("host", "peer", "link", "timing", "arbiter", "health", "metrics", "vm")


def load(directory: Path) -> Config:
    """Read and check all *.toml in `directory`. Raises ConfigError for the first fault found."""
    tree = toml_tree.read(directory)
    _reject_unknown(tree, (), tree.data, SECTIONS)
    links = _expect(tree, ("link",), list, "write each link as a [[link]] table")
    vms = _expect(tree, ("vm",), dict, "write each VM as a [vm.NAME] table")
    config = Config(
        host=_section(tree, ("host",), Host),
        peer=_section(tree, ("peer",), Peer),
        link=tuple(_section(tree, ("link", number), Link) for number in range(len(links))),
        vm={name: _section(tree, ("vm", name), Vm) for name in vms},
        timing=_section(tree, ("timing",), Timing, optional=True),
        arbiter=_section(tree, ("arbiter",), Arbiter, optional=True),
        health=_section(tree, ("health",), Health, optional=True),
        metrics=_section(tree, ("metrics",), Metrics, optional=True),
        directory=directory,
    )
    for key, reason, hint in _faults(config):
        raise tree.error(key, reason, hint)
    return config


def _expect(tree: Tree, key: Key, kind: type, hint: str) -> Any:
    value = tree.data.get(str(key[0]))
    if value is None:
        raise tree.error((), f"no [{key[0]}] in any file", hint)
    if not isinstance(value, kind) or not value:
        raise tree.error(key, "has the wrong form or is empty", hint)
    return value


def _section(tree: Tree, key: Key, kind: type[S], *, optional: bool = False) -> S:
    raw: Any = tree.data
    for part in key:
        if isinstance(raw, dict) and part not in raw:
            if optional:
                return kind()
            raise tree.error((), f"no [{part}] in any file", f"write a [{part}] table")
        raw = raw[part]
    try:
        return msgspec.convert(_prepare(tree, key, raw, kind), kind)
    except msgspec.ValidationError as exc:
        reason, _, path = str(exc).partition(" - at `$")
        names = tuple(int(part) if part.isdigit() else part for part in re.findall(r"\w+", path))
        missing = re.match(r"Object missing required field `(.*)`", reason)
        if missing:
            raise tree.error((*key, *names), f"the key {missing.group(1)} is missing", "add it") from None
        raise tree.error((*key, *names), reason[:1].lower() + reason[1:], "correct the value") from None


def _prepare(tree: Tree, at: Key, raw: object, kind: type[Section]) -> dict[str, Any]:
    """The table `raw` with text turned into quantities; what is left to check is the types."""
    if not isinstance(raw, dict):
        raise tree.error(at, "must be a table", f"write it as [{toml_tree.show(at)}] with keys below")
    fields = {item.name: item.type for item in msgspec.structs.fields(kind)}
    _reject_unknown(tree, at, raw, fields)
    return {name: _value(tree, (*at, name), value, fields[name]) for name, value in raw.items()}


def _value(tree: Tree, key: Key, value: Any, kind: Any) -> Any:
    if isinstance(kind, type) and issubclass(kind, Section):
        return _prepare(tree, key, value, kind)
    item_kind = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None
    if isinstance(item_kind, type) and issubclass(item_kind, Section):
        if not isinstance(value, list):
            raise tree.error(key, "must be a list of tables", f"write each as a [[{toml_tree.show(key)}]] table")
        return [_prepare(tree, (*key, number), item, item_kind) for number, item in enumerate(value)]
    parser, kind = _parser(kind), plain(kind)
    if typing.get_origin(kind) is Literal and value not in typing.get_args(kind):
        raise tree.error(key, f"{value!r} is unknown", f"choose from {', '.join(typing.get_args(kind))}")
    if parser is None:
        return value
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise tree.error(key, f"{value!r} is not a list", "write it in brackets")
        return [_parse(tree, key, parser, item) for item in value]
    parsed = _parse(tree, key, parser, value)
    return tree.directory.absolute() / parsed if isinstance(parsed, Path) else parsed


def _parser(kind: Any) -> Callable[[Any], Any] | None:
    found: Iterator[Callable[[Any], Any]] = (mark.extra["parse"] for mark in marks(kind) if mark.extra)
    return next(found, None)


def _parse(tree: Tree, key: Key, parser: Callable[[Any], Any], value: object) -> Any:
    try:
        return parser(value)
    except ValueError as exc:
        raise tree.error(key, *(str(arg) for arg in exc.args)) from None


def _reject_unknown(tree: Tree, at: Key, raw: dict[str, Any], known: typing.Iterable[str]) -> None:
    for name in raw:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
            raise tree.error((*at, name), "unknown key", hint)


Fault = tuple[Key, str, str]  # where, cause, remedy
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")


def _faults(config: Config) -> Iterator[Fault]:
    """Everything about `config` that cannot work, though each value alone is well formed."""
    for section, name in (("host", config.host.name), ("peer", config.peer.name)):
        if not _HOST_NAME.fullmatch(name):
            yield (section, "name"), f"{name!r} is not a host name", "use small letters, digits and dashes"
    if config.host.name == config.peer.name:
        yield ("peer", "name"), f"{config.peer.name!r} is this host itself", "name the other host of the pair"
    yield from _link_faults(config)
    timing = config.timing
    if not 0.001 <= timing.hello <= 10:
        yield ("timing", "hello"), "must be from 1ms to 10s", "20ms is usual"
    if timing.timeout < 2 * timing.hello:
        yield ("timing", "timeout"), "is less than twice hello", "or one late heartbeat is taken for a death"
    if not timing.timeout <= timing.timeout_max <= 30:
        yield ("timing", "timeout_max"), "must be from timeout to 30s", "2s is usual"
    if timing.lease < 2.999 * timing.hello:  # what is written as a decimal is not exactly that
        yield ("timing", "lease"), "is less than three times hello", "or the VM is mute between two heartbeats"
    if not timing.lease <= timing.lease_max <= timing.timeout:
        yield ("timing", "lease_max"), "must be from lease to timeout", "a peer is not dead while it may speak"
    if not 0 <= timing.backoff <= 3600:
        yield ("timing", "backoff"), "must be from 0s to 1h", "30s is usual"
    if not 0.001 <= timing.reconnect <= 60:
        yield ("timing", "reconnect"), "must be from 1ms to 1min", "100ms is usual"
    bridges, guests = {vm.bridge for vm in config.vm.values()}, {ip for vm in config.vm.values() for ip in vm.ip}
    for field, reason, hint in health_settings.faults(config.health, bridges, guests):
        yield ("health", field), reason, hint
    for field, reason, hint in metrics_settings.faults(config.metrics):
        yield ("metrics", field), reason, hint
    for field, reason, hint in arbiter.faults(config.arbiter):
        yield ("arbiter", field), reason, hint
    for name, vm in config.vm.items():
        for key, reason, hint in _vm_faults(config, name, vm):
            yield ("vm", name, *key), reason, hint
    for key, reason, hint in disk_faults({name: vm.disk for name, vm in config.vm.items()}):
        yield ("vm", *key), reason, hint
    for key, reason, hint in volume_faults({name: (vm.volume, vm.disk) for name, vm in config.vm.items()}):
        yield ("vm", *key), reason, hint


def _link_faults(config: Config) -> Iterator[Fault]:
    seen: dict[str, set[object]] = {"name": set(), "interface": set(), "address": set()}
    for number, link in enumerate(config.link):
        at = ("link", number)
        for field, taken in seen.items():
            value = getattr(link, field)
            if value in taken:
                yield (*at, field), f"{value!r} is another link's too", "each link needs its own"
            taken.add(value)
        if not _INTERFACE.fullmatch(link.interface):
            yield (*at, "interface"), f"{link.interface!r} is no device name", "at most 15 characters"
        if link.address == link.peer:
            yield (*at, "peer"), "is our own address", "give the other host's address on this link"
        if (":" in link.address) != (":" in link.peer):
            yield (*at, "peer"), "is of another IP version than address", "use the same version on both ends"
        if not 1 <= link.port <= 65535:
            yield (*at, "port"), f"{link.port} is no port", "choose from 1 to 65535; 7780 is usual"


def _vm_faults(config: Config, name: str, vm: Vm) -> Iterator[Fault]:
    if not _HOST_NAME.fullmatch(name):
        yield (), f"{name!r} is no VM name", "use small letters, digits and dashes"
    if vm.home not in (config.host.name, config.peer.name):
        names = f"{config.host.name} or {config.peer.name}"
        yield ("home",), f"{vm.home!r} is neither this host nor the peer", f"write {names}"
    if vm.memory < 16 * MIB or vm.memory % MIB:
        remedy = "at least 16MiB, in whole MiB"
        yield ("memory",), f"{format_size(vm.memory)} is no memory size for a VM", remedy
    if not 1 <= vm.vcpus <= 255:
        yield ("vcpus",), f"{vm.vcpus} is out of range", "choose from 1 to 255"
    if not _INTERFACE.fullmatch(vm.bridge):
        yield ("bridge",), f"{vm.bridge!r} is no device name", "at most 15 characters"
    for other, that in config.vm.items():
        if other != name and that.mac == vm.mac:
            yield ("mac",), f"{vm.mac} is the MAC of VM {other} too", "each VM needs its own"
        for ip in vm.ip if other != name else ():
            if ip in that.ip:
                yield ("ip",), f"{ip} is an address of VM {other} too", "each VM needs its own"
    if len(set(vm.ip)) != len(vm.ip) or len(vm.ip) > 64:
        yield ("ip",), "has an address twice or more than 64", "keep each once"
    yield from _file_faults(vm)
    yield from _epoch_faults(vm.epoch)
    for field in ("held", "in_flight", "replay_log", "disk"):
        if getattr(vm.limits, field) < 256 * 1024:
            yield ("limits", field), "is less than 256KiB", "a few whole frames must fit"


def _file_faults(vm: Vm) -> Iterator[Fault]:
    for field, file in (("kernel", vm.kernel), ("initrd", vm.initrd)):
        if file is not None and not file.is_file():
            yield (field,), f"there is no file {file}", "build the image or correct the path"
        elif file is not None and not os.access(file, os.R_OK):
            yield (field,), f"{file} is not readable", "give the service the right to read it"
    if "/" in vm.qemu and not (Path(vm.qemu).is_file() and os.access(vm.qemu, os.X_OK)):
        yield ("qemu",), f"there is no program {vm.qemu}", "give the path of a qemu-system binary"


def _epoch_faults(epoch: Epoch) -> Iterator[Fault]:
    for field in ("length", "min", "max"):
        if not 0.001 <= getattr(epoch, field) <= 10:
            yield ("epoch", field), "must be from 1ms to 10s", "5ms to 50ms are usual"
    if epoch.min > epoch.max:
        yield ("epoch", "min"), "is greater than max", "swap them"
    if not 0.01 <= epoch.pause_share <= 1:
        yield ("epoch", "pause_share"), f"{epoch.pause_share} is no share", "choose from 0.01 to 1"
    if not 1 <= epoch.in_flight <= 64:
        yield ("epoch", "in_flight"), f"{epoch.in_flight} is out of range", "choose from 1 to 64"
