# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decisions about hosts: which live, the proof that one is dead, and the takeover from it."""
