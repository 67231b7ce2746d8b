# SPDX-License-Identifier: LGPL-2.1-or-later
"""The leases of the VM and of fencing, and the freeing of a dead host's id."""
