# SPDX-License-Identifier: GPL-2.0-or-later
"""Arbiters: who decides about the next term when two hosts cannot see each other.

`grants.py` has the rules, pure. `arbiter.py` applies them to a record that lies in a `register`: with a witness
(`witness_client.py`, and `witness.py` on the third machine) or in etcd (`etcd.py`).
"""
