# SPDX-License-Identifier: LGPL-2.1-or-later
"""The version of this program; the same as in pyproject.toml, which is not installed."""

VERSION = "0.1.0"
