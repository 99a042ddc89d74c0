# SPDX-License-Identifier: GPL-2.0-or-later
"""The command `holdfast`: one module for each kind of verb, and what they share."""

from appliance.cli.command_line import main

__all__ = ["main"]
