# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM in libvirt: its definition, start, stop, live migration, and what else acts on it."""
