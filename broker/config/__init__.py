# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file: its sections, what fits together, secrets, and what may change at a
reload."""
