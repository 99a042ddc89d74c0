# SPDX-License-Identifier: GPL-2.0-or-later
"""The control socket: how commands ask the running service, and how it answers."""

from appliance.control.client import call, stream
from appliance.control.protocol import PROTOCOL

__all__ = ["PROTOCOL", "call", "stream"]
