# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast the storage answers: what `join` prints and `doctor` judges."""

from __future__ import annotations

import time

from agent.storage.watched import storage_error
from broker.config.sections import Config
from broker.whiteboard.volume import Volume, VolumeError

#: Reads of the whiteboard that measure the storage's speed.
READS = 20


def storage_speed(config: Config) -> tuple[str, float]:
    """The speed of reads of the whiteboard, in words, and the slowest read in ms; CommandError."""
    took: list[float] = []
    try:
        with Volume(config.storage.whiteboard) as volume:
            for _ in range(READS):
                began_s = time.monotonic()
                volume.read_slots(range(17))
                took.append(time.monotonic() - began_s)
    except VolumeError as error:
        raise storage_error(error) from None
    took.sort()
    text = (
        f"{config.storage.whiteboard}: direct reads take {1000 * took[len(took) // 2]:.1f} ms,"
        f" at most {1000 * took[-1]:.1f} ms"
    )
    return text, 1000 * took[-1]
