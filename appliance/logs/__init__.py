# SPDX-License-Identifier: GPL-2.0-or-later
"""What a service says about itself: log lines with fields, written by a thread of their own, never waited for."""
