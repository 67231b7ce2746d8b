# SPDX-License-Identifier: LGPL-2.1-or-later
"""What concerns a host: whether it lives, the proof that it is dead, and the taking over from
it."""
