# SPDX-License-Identifier: LGPL-2.1-or-later
"""sanlock: this host's id, the other hosts' renewals, and the owners of the leases."""
