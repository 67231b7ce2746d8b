# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file: its sections, the relations of its values, the secrets, and what a reload
may change."""
