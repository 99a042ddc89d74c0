# SPDX-License-Identifier: GPL-2.0-or-later
"""The lab: a two-host installation on one machine, and what drives and judges it."""
