# SPDX-License-Identifier: LGPL-2.1-or-later
"""The types of what goes over the socket and over HTTP."""
