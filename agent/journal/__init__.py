# SPDX-License-Identifier: LGPL-2.1-or-later
"""The flight recorder: each decision with what it went by, and what an incident looks like in
it."""
