# SPDX-License-Identifier: GPL-2.0-or-later
"""What is written into the host's packet filter: rulesets for nftables, and how they are loaded."""
