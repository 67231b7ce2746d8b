# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes a cluster and changes its members: init, join, leave, clean-metadata,
reinitialize-lockspace.

Rules of this room:

1. Everything is checked before anything is changed (`steps.py`): a refusal leaves all as it was.
2. Each command may be repeated, after a success or a break: what exists is kept.
3. Nothing that is in use is overwritten: a lockspace whose ids are renewed, a slot that
   changes. Which of two hosts gets a host id is decided by sanlock, not here.
"""
