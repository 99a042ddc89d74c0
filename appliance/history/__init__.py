# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of each VM on this host, on disk: starts, takeovers, switchovers, losses, with their steps and times."""
