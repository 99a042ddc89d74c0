# SPDX-License-Identifier: GPL-2.0-or-later
"""Quantities with units as people write them: durations, sizes, MAC and IP addresses.

Each parser takes the text of a setting and raises ValueError(cause, remedy).
"""

import ipaddress
import re

SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
BYTES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_QUANTITY = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_duration(text: object) -> float:
    """Seconds, from text such as "25ms" or "1.5s"."""
    number, unit = _split(text, SECONDS, "duration", "25ms")
    return number * SECONDS[unit]


def parse_size(text: object) -> int:
    """Bytes, from text such as "128MiB"."""
    number, unit = _split(text, BYTES, "size", "128MiB")
    size = number * BYTES[unit]
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes", "use a smaller unit")
    return int(size)


def _split(text: object, units: dict[str, float] | dict[str, int], what: str, like: str) -> tuple[float, str]:
    if not isinstance(text, str):
        raise ValueError(f"{text!r} has no unit", f'write a {what} as text with its unit, such as "{like}"')
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is not a {what}", f'write a number and a unit, such as "{like}"')
    number, unit = found.groups()
    if unit not in units:
        cause = f"{text!r} has the unknown unit {unit!r}" if unit else f"{text!r} has no unit"
        raise ValueError(cause, f"units of a {what} are {', '.join(units)}")
    return float(number), unit


def format_duration(seconds: float) -> str:
    """The text that `parse_duration` reads back as the same number, exact to a microsecond."""
    micros = round(seconds * 1e6)
    for unit, scale in (("s", 10**6), ("ms", 10**3)):
        if micros % scale == 0:
            return f"{micros // scale}{unit}"
    return f"{micros}us"


def format_size(size: int) -> str:
    """The text that `parse_size` reads back as the same number."""
    for unit in ("GiB", "MiB", "KiB"):
        if size and size % BYTES[unit] == 0:
            return f"{size // BYTES[unit]}{unit}"
    return f"{size}B"


def parse_mac(text: object) -> str:
    """A unicast MAC address in lower case with colons."""
    if not isinstance(text, str) or not re.fullmatch(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}", text):
        raise ValueError(f"{text!r} is not a MAC address", 'write it like "52:54:00:12:34:56"')
    if int(text[:2], 16) & 1:
        raise ValueError(f"{text} is a group address", "the first byte must be even, such as 52")
    if text == "00:00:00:00:00:00":
        raise ValueError(f"{text} is no address", "choose one under 52:54:00")
    return text.lower()


def parse_ip(text: object) -> str:
    """A usable IPv4 or IPv6 address in its canonical form, without a prefix length."""
    remedy = 'write an address without prefix length, such as "10.77.0.10" or "fd77::10"'
    if not isinstance(text, str):
        raise ValueError(f"{text!r} is not an IP address", remedy)
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address", remedy) from None
    if address.is_multicast or address.is_unspecified or address.is_loopback or "%" in text:
        raise ValueError(f"{text} cannot be a host's address", remedy)
    return str(address)
