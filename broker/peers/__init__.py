# SPDX-License-Identifier: LGPL-2.1-or-later
"""The other hosts, asked over the network: heartbeats, what they hear, and whether they reach
libvirt."""
