# SPDX-License-Identifier: LGPL-2.1-or-later
"""The modes in which less is done: global and local maintenance, and a host that shuts down."""
