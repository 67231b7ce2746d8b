# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decisions about a VM: its states, where it is started, moved and stopped, and the score of a host
for it."""
