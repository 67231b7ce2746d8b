# SPDX-License-Identifier: LGPL-2.1-or-later
"""Telling people and other programs what happened here.

Rules of this package:

1. The broker calls `Notices.tell`, and nothing else. It is synchronous, costs O(1), never
   waits and never raises.
2. Each way out (mail, webhook, command) has its own queue and its own task: none waits for
   another, and no failure of any of them reaches the beat.
3. Everything is bounded (`limits.py`). What does not fit is counted, and the count is shown.
4. A text in a notice may come from anybody who can write to the whiteboard. A Notice holds
   one printable line for each, whatever it was made from; nothing downstream escapes anew.
"""
