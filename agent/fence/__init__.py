# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fence devices: their protocols, the proof whose machine a device switches, and the order
itself."""
