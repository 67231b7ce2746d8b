# SPDX-License-Identifier: LGPL-2.1-or-later
"""The storages that a lab can have, each as its users have it: see kinds.py."""
