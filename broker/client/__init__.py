# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients of the broker's socket, for the other programs of this host."""
