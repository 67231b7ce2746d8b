# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people and programs are shown of the cluster, made from what the broker knows."""
