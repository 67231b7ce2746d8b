# SPDX-License-Identifier: LGPL-2.1-or-later
"""SlotStore: the whiteboard's volume, by way of one host.

The simulated volume has every slot; where a real one ends is in tests/unit/test_volume.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.slot import EMPTY_SLOT
from broker.whiteboard.store import StorageTrouble
from tests.contract.real import RealStore
from tests.contract.simulated import SimulatedStore

ONE, TWO = b"1" * SLOT_BYTES, b"2" * SLOT_BYTES
#: Slots of hosts that are in no story.
HERE, THERE = 40, 41


Both = SimulatedStore | RealStore


@pytest.fixture(params=["simulated", "real"])
def site(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Both]:
    """`store`: of the host under test; `second`: another host's, whose way is always clear."""
    made = SimulatedStore() if request.param == "simulated" else RealStore(tmp_path, monkeypatch)
    yield made
    made.close()


def test_what_one_writes_the_other_reads_and_what_nobody_wrote_is_empty(site: Both) -> None:
    site.call(lambda: site.store.write(HERE, ONE))
    assert dict(site.call(lambda: site.second.read([HERE, THERE]))) == {
        HERE: ONE,
        THERE: EMPTY_SLOT,
    }
    site.call(lambda: site.second.write(HERE, TWO))
    assert site.call(lambda: site.store.read([HERE]))[HERE] == TWO
    assert site.store.at_rest()


def test_an_error_is_told_at_once_and_is_no_hang(site: Both) -> None:
    site.fails()
    for call in (lambda: site.store.write(HERE, ONE), lambda: site.store.read([HERE])):
        with pytest.raises(StorageTrouble, match="Input/output error") as told:
            site.call(call)
        assert not told.value.hung
    assert site.store.at_rest(), "nothing of it can land any more"
    site.is_well()
    assert site.call(lambda: site.store.read([HERE]))[HERE] == EMPTY_SLOT


def test_a_call_that_hangs_is_given_up_and_none_is_begun_before_it_ends(site: Both) -> None:
    """The real store has a thread for each kind of call, the simulated one has one for both: there
    the write is the call that a read waits for."""
    site.hangs()
    call = f"(writing slot {HERE}|reading slots)"
    for what in (lambda: site.store.write(HERE, ONE), lambda: site.store.read([HERE])):
        with pytest.raises(
            StorageTrouble, match=f"whiteboard: {call} has not answered for"
        ) as told:
            site.call(what)
        assert told.value.hung
        assert not site.store.at_rest()


def test_a_write_that_was_given_up_lands_when_the_storage_is_back(site: Both) -> None:
    site.hangs()
    with pytest.raises(StorageTrouble):
        site.call(lambda: site.store.write(HERE, ONE))
    site.is_well()
    for _ in range(600):
        site.pass_s(0.05)
        if site.store.at_rest() and site.call(lambda: site.second.read([HERE]))[HERE] == ONE:
            break
    assert site.call(lambda: site.store.read([HERE]))[HERE] == ONE
    site.call(lambda: site.store.write(HERE, TWO))
    assert site.call(lambda: site.second.read([HERE]))[HERE] == TWO
