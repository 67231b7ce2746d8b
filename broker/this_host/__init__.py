# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host, as it is published to the others."""
