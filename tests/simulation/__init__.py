# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whole clusters in virtual time: the product's own broker and agent on simulated ports.

Read in this order: timeline (time and event loops), lockspace (sanlock's rules on a shared
volume), host (a machine with its daemons and its VM), ports (the product's adapters),
world (a cluster), laws (what must always hold), faults (what goes wrong by chance),
scenario (what goes wrong by plan).
"""
