# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pure core: scores, liveness, the state machine, the takeover protocol.

Imports the standard library only. No clock, no I/O, no asyncio, no logging. Read in this
order: observation (what comes in), decision (what goes out), state, score, decide,
takeover.
"""
