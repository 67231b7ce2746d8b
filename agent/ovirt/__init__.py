# SPDX-License-Identifier: LGPL-2.1-or-later
"""Coming from oVirt: its hosted engine's files, read and turned into ours. Writes only where it
is told to."""
