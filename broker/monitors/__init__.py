# SPDX-License-Identifier: LGPL-2.1-or-later
"""The monitors: what this host samples of itself and of its VMs, one small file for each."""
