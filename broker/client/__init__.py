# SPDX-License-Identifier: LGPL-2.1-or-later
"""How another program of this host asks the broker."""
