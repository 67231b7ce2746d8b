# SPDX-License-Identifier: LGPL-2.1-or-later
"""The registry of the VMs as commands change it: under its lease, one at a time in the cluster."""
