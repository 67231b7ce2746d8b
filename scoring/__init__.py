# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pure core: scores, liveness, the state machine, the takeover protocol.

It imports the standard library only: no clock, no I/O, no asyncio, no logging. Read it in this
order: observation (the input), decision (the output), state (the memory), decide (one beat), then
hosts/takeover (the proof that a host is dead) and vm/machine (the states of a VM).
"""
