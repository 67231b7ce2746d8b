# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's definition: its facts, what it needs of a host, and whether this host can start it.
No process, no loop."""
