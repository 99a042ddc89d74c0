# SPDX-License-Identifier: GPL-2.0-or-later
"""The VM half: the QEMU process, its memory and device state, checkpoints, the replica, the wire format.

Knows nothing of the networks in front of the VM and imports nothing of ours outside itself.
"""
