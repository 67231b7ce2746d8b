# SPDX-License-Identifier: LGPL-2.1-or-later
"""The data that the agent and the broker exchange."""
