# SPDX-License-Identifier: GPL-2.0-or-later
"""What happened to each frame on its way through the front, for people who look into it.

One frame, top to bottom: `ebpf/trace.h` puts a record into a ring, `session.py` has the service switch that on and
tell of epochs, `journey.py` joins both into events, and `columns.py`, `lines.py` and `pcapng.py` write them.
`audit.py`, `explain.py`, `epochs.py` and `plot.py` read events, live or out of a file.
"""
