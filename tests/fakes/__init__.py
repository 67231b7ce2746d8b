# SPDX-License-Identifier: LGPL-2.1-or-later
"""Simulated adapters, one per port, each held to the contract of the real one."""
