# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench`: the figures, measured here, as medians with the noise beside them."""
