# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flight recorder: each decision with its input, and an incident as a scenario."""
