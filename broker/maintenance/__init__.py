# SPDX-License-Identifier: LGPL-2.1-or-later
"""The modes in which the cluster does less: global and local maintenance, and a host's shutdown."""
