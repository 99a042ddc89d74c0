# SPDX-License-Identifier: GPL-2.0-or-later
"""Holdfast: the service that keeps a virtual machine alive when its host dies."""

__version__ = "0.1.0"
