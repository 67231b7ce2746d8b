# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the agent and the broker hand to each other."""
