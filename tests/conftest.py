# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all tests stand on."""

from __future__ import annotations

import gc
import signal

import pytest
from hypothesis import HealthCheck, settings

# A shell that starts the tests in the background lets them ignore the interrupt, and a program
# that is started by a test would inherit that: Ctrl-C could not be tried.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A run says the same of the same code, always. `--hypothesis-profile=random` (`make explore`) looks
# for what nobody thought of; what it finds becomes a test with its numbers.
# How long an example takes, and to draw it, depends on the machine: nothing is timed.
settings.register_profile(
    "same",
    derandomize=True,
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("random", print_blob=True, deadline=None)
settings.load_profile("same")

# Python looks for cycles after each 700 new objects, and now and then at all that the modules and
# thousands of tests are made of: a fifth of the processor's time. A test that needs the look asks
# for it (gc.collect).
gc.set_threshold(50_000, 10, 10)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there now stays until the end: it need not be looked at again."""
    gc.collect()
    gc.freeze()
