# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a command speaks: columns, errors, progress, steps."""
