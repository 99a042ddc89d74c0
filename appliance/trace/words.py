# SPDX-License-Identifier: GPL-2.0-or-later
"""Events in words: notes as sentences, times and durations as people read them."""

from __future__ import annotations

import time

from appliance.trace import notes

_LONG = ("reason", "cause", "planned", "role")
"""Fields of an event that are said in other words, or are of no interest beside frames."""


def clock(at_ns: int) -> str:
    """Local time of day, to the microsecond."""
    seconds, rest = divmod(at_ns, 1_000_000_000)
    return f"{time.strftime('%H:%M:%S', time.localtime(seconds))}.{rest // 1000:06d}"


def ms(nanoseconds: int | None) -> str:
    """Milliseconds, to the microsecond; a dash for what is not known."""
    return "-" if nanoseconds is None else f"{nanoseconds / 1e6:.3f}"


def says(note: notes.Note) -> str:
    """One line, without its time."""
    match note:
        case notes.Marked():
            return f"{note.vm}: epoch {note.epoch} of term {note.term} ends with frame {note.number}"
        case notes.Taken():
            pause = ms(note.stop_ns + note.save_ns + note.resume_ns)
            return f"{note.vm}: epoch {note.epoch} taken in {pause} ms: {note.pages} pages, {note.frames} frames"
        case notes.Sent():
            return f"{note.vm}: epoch {note.epoch} is on its way to the backup"
        case notes.Acked():
            return f"{note.vm}: epoch {note.epoch} is committed: the backup has acknowledged it"
        case notes.Released():
            return f"{note.vm}: what epoch {note.epoch} sent is out"
        case notes.Committed():
            return f"{note.vm}: epoch {note.epoch} of term {note.term} is whole on this backup"
        case notes.Alone():
            return (f"{note.vm}: runs alone: frames after {note.number} go out as they come" if note.alone
                    else f"{note.vm}: protected: frames after {note.number} wait for their epoch")
        case notes.Dropped():
            return f"{note.vm}: held frames {note.first} to {note.last} are thrown away: {note.cause}"
        case notes.Again():
            return f"{note.vm}: {note.frames} frames {note.point} by this host"
        case notes.Copies():
            return f"{note.vm}: frames {note.point}: {note.cause}"
        case notes.Happened():
            reason = note.fields.get("reason")
            fields = " ".join(f"{key}={value}" for key, value in note.fields.items() if key not in _LONG)
            return f"{note.vm}: {note.event} {fields}".rstrip() + (f": {reason}" if reason else "")
