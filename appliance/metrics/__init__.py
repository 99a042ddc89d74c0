# SPDX-License-Identifier: GPL-2.0-or-later
"""What monitoring reads of a service: figures for Prometheus, and answers for load balancers, over HTTP."""
