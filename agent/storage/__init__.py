# SPDX-License-Identifier: LGPL-2.1-or-later
"""The volumes: what they lie on, how they are made, their identities, and whether they are in
use."""
