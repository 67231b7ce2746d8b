# SPDX-License-Identifier: LGPL-2.1-or-later
"""This host's facts, as they are published to the others."""
