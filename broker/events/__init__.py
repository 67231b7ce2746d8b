# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened: detected, counted, kept, and passed on."""
