# SPDX-License-Identifier: LGPL-2.1-or-later
"""Import from oVirt: reads its hosted engine's files and turns them into ours. Writes only with
`--output`."""
