# SPDX-License-Identifier: LGPL-2.1-or-later
"""The types that cross the broker's socket and HTTP."""
