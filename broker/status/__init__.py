# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster as people and programs see it, made from the broker's knowledge."""
