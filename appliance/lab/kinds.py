# SPDX-License-Identifier: GPL-2.0-or-later
"""The kinds of faults that a lab can have; `appliance.lab.faults` says what each does."""

KINDS = ("crash", "qemu-kill", "service-kill", "service-pause", "link-down", "both-links", "uplink-down",
         "san-down", "disk-fail", "disk-full", "witness-down")
