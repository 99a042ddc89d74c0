# SPDX-License-Identifier: GPL-2.0-or-later
"""How well this host is: monitors that read its parts, readings judged by thresholds, and what they mean for its VMs.

`judge` and `fitness` are pure; the other modules read the kernel. docs/health.md has every source and threshold.
"""
