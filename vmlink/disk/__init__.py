# SPDX-License-Identifier: GPL-2.0-or-later
"""The disks of a VM: what it writes is recorded per epoch on one host, and applied in whole epochs on the other."""
