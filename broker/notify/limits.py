# SPDX-License-Identifier: LGPL-2.1-or-later
"""Every bound of the notifications. Tests shorten the times and reach each of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """`inbox`: notices that came in and were not sorted yet. `queue`: notices that wait for one
    channel.

    `burst` messages may go out within `window_s` by one channel; later ones wait. When
    `digest_from` notices wait they go out as one message. A failed message is tried
    again after `retry_first_s`, twice that, and so on up to `retry_max_s`, for `give_up_s` in
    all. `closing_s`: how long a broker that ends tries to send the rest. `folded`: notices
    remembered so that repeats are found.
    """

    inbox: int = 1000
    queue: int = 100
    burst: int = 10
    window_s: float = 60.0
    digest_from: int = 5
    retry_first_s: float = 5.0
    retry_max_s: float = 300.0
    give_up_s: float = 3600.0
    closing_s: float = 3.0
    folded: int = 256

    def __post_init__(self) -> None:
        assert 1 < self.digest_from <= self.queue <= self.inbox
        assert 0 < self.retry_first_s <= self.retry_max_s <= self.give_up_s
