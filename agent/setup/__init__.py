# SPDX-License-Identifier: LGPL-2.1-or-later
"""Making a cluster and changing who belongs to it: init, join, leave, clean-metadata,
reinitialize-lockspace.

Rules of this room:

1. Everything is looked at before anything is changed (`steps.py`): a refusal leaves all as it was.
2. Each command may be given again, after it worked or after it broke off: what is there is kept.
3. Nothing that somebody uses is written over: a lockspace whose ids are renewed, a slot that
   changes. Which of two hosts gets a host id is decided by sanlock, not here.
"""
