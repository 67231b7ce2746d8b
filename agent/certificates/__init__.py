# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster's own certificates: an authority that each member has, and what it makes for the
host, for libvirt, QEMU and our own server."""
