# SPDX-License-Identifier: LGPL-2.1-or-later
"""The shared volume: slots, the cluster's mode, the fence log, identities, and what ran last."""
