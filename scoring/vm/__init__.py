# SPDX-License-Identifier: LGPL-2.1-or-later
"""What concerns the VM: its states, where it is started, moved and stopped, and the score of a
host for it."""
