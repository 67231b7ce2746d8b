# SPDX-License-Identifier: LGPL-2.1-or-later
"""The commands of `ha-agent`, beside set-up, status and doctor."""
