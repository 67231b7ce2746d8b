# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent --status`: fetched, decoded and shown; loads as little as possible."""
