# SPDX-License-Identifier: GPL-2.0-or-later
"""The admin shell: the verbs of the registry at a prompt that shows where the VMs stand, with live events above it."""
