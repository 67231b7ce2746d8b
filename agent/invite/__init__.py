# SPDX-License-Identifier: LGPL-2.1-or-later
"""Invitations: a member hands a newcomer the cluster's files, once, for a short token."""
