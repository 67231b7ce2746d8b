# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent --status`: fetched, read and told; loads as little as it can."""
