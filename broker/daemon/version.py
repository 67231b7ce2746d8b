# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which version this is; the same as in pyproject.toml, which is not there once installed."""

VERSION = "0.1.0"
