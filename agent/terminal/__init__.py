# SPDX-License-Identifier: LGPL-2.1-or-later
"""The output of commands: columns, errors, progress, steps."""
