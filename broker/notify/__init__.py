# SPDX-License-Identifier: LGPL-2.1-or-later
"""Notifies people and other programs of what happens on this host and in its cluster.

Rules of this package:

1. The broker calls `Notices.notify`, and nothing else. It is synchronous, costs O(1), never
   waits and never raises.
2. Each channel (mail, webhook, command) has its own queue and its own task: no channel waits for
   another, and no failure of a channel reaches the beat.
3. Everything is bounded (`limits.py`). What does not fit is counted, and the status shows the
   count.
4. A text in a notice may come from anybody who can write to the whiteboard. A Notice holds
   one printable line for each, whatever it was made from; nothing downstream escapes anew.
"""
