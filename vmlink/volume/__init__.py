# SPDX-License-Identifier: GPL-2.0-or-later
"""A volume that both hosts reach: what the VM writes to it is kept back until its epoch is committed."""
