# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all tests stand on."""

from __future__ import annotations

import signal

from hypothesis import HealthCheck, settings

# A shell that starts the tests in the background lets them ignore the interrupt, and a program
# that is started by a test would inherit that: Ctrl-C could not be tried.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A run says the same of the same code, always. `--hypothesis-profile=random` (`make explore`) looks
# for what nobody thought of; what it finds becomes a test with its numbers.
# How long it takes to draw examples depends on the machine.
settings.register_profile(
    "same",
    derandomize=True,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("random", print_blob=True)
settings.load_profile("same")
