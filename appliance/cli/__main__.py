# SPDX-License-Identifier: GPL-2.0-or-later
"""python -m appliance.cli: the command `holdfast`, where it is not installed."""

import sys

from appliance.cli.command_line import main

sys.exit(main())
