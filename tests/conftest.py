# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all tests stand on."""

from __future__ import annotations

import signal

# A shell that starts the tests in the background lets them ignore the interrupt, and a program
# that is started by a test would inherit that: Ctrl-C could not be tried.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
