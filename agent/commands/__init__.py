# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `ha-agent` can be told on the command line, beside set-up, status and doctor."""
