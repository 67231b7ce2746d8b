# SPDX-License-Identifier: LGPL-2.1-or-later
"""What happened: noticed, counted, kept, and told."""
