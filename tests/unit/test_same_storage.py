# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether a peer writes to the storage that is read here: the table and the rules of
scoring/hosts/same_storage.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scoring.hosts.same_storage import (
    Answer,
    Asking,
    Compared,
    Count,
    Finding,
    Here,
    Ids,
    Judgement,
    Limits,
    compare,
    judge,
)

LIMITS = Limits(suspect_after_s=3.0, dead_s=140.0)
OWN = Ids("c", "w", "l")
STANDS = Here("host2 (id 2)", slot=700, slot_read_s=10.0, slot_changed_s=None, askable=True)


def said(
    heard_s: float,
    written: int | None = None,
    renewal: Count | None = None,
    ids: Ids = OWN,
    vm_up: bool = False,
) -> Answer:
    return Answer(heard_s, written, renewal, ids, vm_up)


def story(*steps: tuple[Answer | None, Here]) -> Compared:
    """One peer, read after read."""
    found: Compared | None = None
    for answer, here in steps:
        found = compare(found, answer, here, OWN, LIMITS)
    assert found is not None
    return found


def at(read_s: float, slot: int = 700, changed_s: float | None = None) -> Here:
    return replace(STANDS, slot=slot, slot_read_s=read_s, slot_changed_s=changed_s)


def leases(read_s: float, renewal: Count | None, changed_s: float | None = None) -> Here:
    return replace(
        STANDS, renewal=renewal, renewal_read_s=read_s, renewal_changed_s=changed_s, slot=812
    )


def test_what_it_wrote_is_seen_here() -> None:
    assert story((said(9.0, 812), at(10.0, 812))).finding is Finding.NOTHING
    assert story((said(9.0, 812), at(10.0, 813))).finding is Finding.NOTHING


def test_a_read_that_began_before_the_answer_came_proves_nothing() -> None:
    found = story((said(9.0, 812), at(8.9)))
    assert found.finding is Finding.NOTHING
    assert found.slot is None


def test_what_is_not_seen_at_once_is_a_doubt() -> None:
    found = story((said(9.0, 812), at(9.0)))
    assert found.finding is Finding.DOUBT
    assert found.text == "says that it wrote 812 to its slot, which is at 700 here"
    assert story((said(9.0, 812), at(9.0)), (said(9.0, 812), at(9.5, 812))).finding is (
        Finding.NOTHING
    ), "a write may be seen a little later"


@pytest.mark.parametrize(
    ("read_s", "finding"), [(13.99, Finding.DOUBT), (14.0, Finding.OTHER), (500.0, Finding.OTHER)]
)
def test_what_stays_unseen_while_it_writes_on_is_elsewhere(read_s: float, finding: Finding) -> None:
    found = story((said(9.0, 812), at(9.5)), (said(12.0, 815), at(read_s)))
    assert found.finding is finding
    assert found.differs_since_s == 9.0


def test_one_word_that_never_grows_is_a_doubt_for_a_time() -> None:
    first, again = (said(9.0, 812), at(9.5)), said(100.0, 812)
    assert story(first, (again, at(148.9))).finding is Finding.DOUBT
    assert story(first, (again, at(149.0))).finding is Finding.ODD
    up = said(100.0, 812, vm_up=True)
    assert story(first, (up, at(500.0))).finding is Finding.DOUBT, "the VM is there, it says"


def test_a_slot_that_changes_here_is_here_whatever_it_says() -> None:
    """A timestamp from the future: named, and nothing else."""
    future = 10**12
    soon = story((said(9.0, future), at(9.5)), (said(10.0, future + 1), at(11.0, 702, 10.5)))
    assert soon.finding is Finding.NOTHING
    later = story((said(9.0, future), at(9.5)), (said(10.0, future + 1), at(20.0, 711, 20.0)))
    assert later.finding is Finding.ODD
    judged = judge({2: later}, 20.0, LIMITS)
    assert judged.unfit == "" and not judged.others and not judged.unsure
    assert judged.odd == {2: f"says that it wrote {future + 1} to its slot, which is at 711 here"}


def test_a_storage_that_shows_writes_late_is_no_other_one() -> None:
    late = story((said(9.0, 812), at(9.5)), (said(12.0, 815), at(12.5, 812, 12.5)))
    assert late.slot is not None and late.slot.first == (815, 0)
    assert late.finding is Finding.NOTHING
    assert story((said(9.0, 812), at(9.5)), (said(12.0, 815), at(12.5, 815, 12.5))).slot is None


def test_it_counts_anew_and_is_still_elsewhere() -> None:
    found = story(
        (said(9.0, 812), at(9.5)),
        (said(12.0, 815), at(14.0)),
        (said(60.0, 705), at(61.0)),
    )
    assert found.finding is Finding.OTHER
    assert found.slot is not None and found.slot.since_s == 9.0
    back = compare(found, said(70.0, 715), at(70.0, 716, 70.0), OWN, LIMITS)
    assert back.finding is Finding.NOTHING and back.differs_since_s is None and back.text == ""


def test_what_was_found_stands_while_it_says_nothing() -> None:
    steps = ((said(9.0, 812), at(9.5)), (said(12.0, 815), at(14.0)))
    assert story(*steps, (said(20.0), at(21.0))).finding is Finding.OTHER, "its broker is new"
    assert story(*steps, (said(20.0, 900), at(15.0))).finding is Finding.OTHER
    unread = replace(STANDS, slot_read_s=None)
    assert story(*steps, (said(20.0, 900), unread)).finding is Finding.OTHER
    assert story(*steps, (said(20.0), at(21.0, 815, 21.0))).finding is Finding.NOTHING


def test_one_that_never_answered_is_as_it_was() -> None:
    found = story((None, STANDS), (None, at(12.0)))
    assert found == Compared(at(12.0))


@pytest.mark.parametrize(
    ("shown", "finding"),
    [
        ((3, 5012), Finding.NOTHING),
        ((3, 5032), Finding.NOTHING),
        ((4, 20), Finding.NOTHING),
        ((3, 0), Finding.NOTHING),
        ((3, 4992), Finding.OTHER),
        ((2, 9999), Finding.OTHER),
        ((2, 0), Finding.OTHER),
        (None, Finding.NOTHING),
    ],
)
def test_renewals_that_are_not_seen_here(shown: Count | None, finding: Finding) -> None:
    answer = said(9.0, 812, renewal=(3, 5012))
    found = story((answer, leases(9.5, shown)), (answer, leases(14.0, shown)))
    assert found.finding is finding
    assert (finding is Finding.OTHER) == ("says that it renewed its host id" in found.text)


def test_a_renewal_told_in_words() -> None:
    answer = said(9.0, 812, renewal=(3, 5012))
    found = story((answer, leases(14.5, (2, 0))))
    assert found.text == (
        "says that it renewed its host id (generation 3, 5012; here it is generation 2, released)"
    )


def test_a_renewal_that_comes_late_is_no_finding() -> None:
    answer = said(9.0, 812, renewal=(3, 5012))
    found = story((answer, leases(9.5, (3, 4992))), (answer, leases(14.5, (3, 5002), 12.0)))
    assert found.finding is Finding.ODD


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (Ids("c", "w", "l"), ""),
        (Ids("", "", ""), ""),
        (Ids("x", "w", "l"), "says that it is of cluster x, and this host is of c"),
        (Ids("c", "x", "l"), "says that it is of whiteboard x, and this host is of w"),
        (Ids("c", "w", "x"), "says that it is of lease volume x, and this host is of l"),
    ],
)
def test_volumes_with_other_names_are_others_at_once(ids: Ids, text: str) -> None:
    found = story((said(9.0, 812, ids=ids), at(10.0, 812)))
    assert found.text == text
    assert (found.finding is Finding.OTHER) == bool(text)
    unnamed = compare(None, said(9.0, 812, ids=ids), at(10.0, 812), Ids(), LIMITS)
    assert unnamed.finding is Finding.NOTHING


# --- all of them together --------------------------------------------------------------------


def elsewhere(differs_since_s: float = 9.0, heard_s: float = 20.0, vm_up: bool = False) -> Compared:
    """A peer on other storage, which was here before."""
    found = story(
        (said(differs_since_s, 812), at(differs_since_s + 0.5)),
        (said(heard_s, 815, vm_up=vm_up), at(heard_s + 10.0, 700, differs_since_s - 1.0)),
    )
    assert found.finding is Finding.OTHER
    return found


def never_here(heard_s: float = 20.0) -> Compared:
    found = elsewhere(heard_s=heard_s)
    return replace(found, here=replace(found.here, slot_changed_s=None))


def with_us(changed_s: float) -> Compared:
    return story((None, at(changed_s, 900, changed_s)))


def test_of_two_hosts_both_hold() -> None:
    judged = judge({2: elsewhere()}, 30.0, LIMITS)
    assert judged.unfit == (
        "this host and host2 (id 2) do not see the same storage: host2 (id 2) says that it wrote"
        " 815 to its slot, which is at 700 here; look at what is mounted here and there"
    )
    assert judged.others == {2: "says that it wrote 815 to its slot, which is at 700 here"}
    assert judged.unsure == ()


def test_of_three_the_one_alone_holds() -> None:
    assert judge({2: elsewhere(), 3: with_us(30.0)}, 30.0, LIMITS).unfit == ""
    assert "and host2 (id 2) and" in judge({2: elsewhere(), 3: elsewhere()}, 30.0, LIMITS).unfit


def test_one_that_died_here_after_the_other_went_away_counts_for_this_side() -> None:
    assert judge({2: elsewhere(differs_since_s=9.0), 3: with_us(9.1)}, 30.0, LIMITS).unfit == ""
    assert judge({2: elsewhere(differs_since_s=9.0), 3: with_us(8.9)}, 30.0, LIMITS).unfit != ""


def test_one_that_was_elsewhere_when_it_died_counts_for_nobody() -> None:
    """A copy of the leases alone: all slots change here, and its finding ends with its silence."""
    died = elsewhere(heard_s=20.0)
    died = replace(died, here=replace(died.here, slot_changed_s=25.0))
    lives = elsewhere(heard_s=160.0)
    judged = judge({2: died, 3: lives}, 165.0, LIMITS)
    assert set(judged.others) == {3}
    assert "and host2 (id 2) do not see" in judged.unfit


def test_two_against_two_hold() -> None:
    peers = {2: elsewhere(), 3: elsewhere(), 4: with_us(30.0)}
    assert judge(peers, 30.0, LIMITS).unfit != ""
    assert judge(peers | {5: with_us(30.0)}, 30.0, LIMITS).unfit == ""


def test_a_finding_ends_with_sanlocks_time_after_the_last_word() -> None:
    assert judge({2: elsewhere(heard_s=20.0)}, 159.9, LIMITS).unfit != ""
    gone = judge({2: elsewhere(heard_s=20.0)}, 160.0, LIMITS)
    assert gone == Judgement()


def test_nothing_speaks_for_a_storage_on_which_nobody_was_ever_seen() -> None:
    assert judge({2: never_here(heard_s=20.0)}, 1e6, LIMITS).unfit != ""


def test_nothing_is_started_while_it_says_that_the_vm_is_up_there() -> None:
    peers = {2: elsewhere(heard_s=20.0, vm_up=True), 3: with_us(30.0), 4: with_us(30.0)}
    assert judge(peers, 159.9, LIMITS).unfit == (
        "a VM is, or may be, up on host2 (id 2), which does not see the storage that this host"
        " sees: it says that it wrote 815 to its slot, which is at 700 here; look at what is"
        " mounted here and there"
    )
    assert judge(peers, 160.0, LIMITS).unfit == ""


def test_nothing_is_started_while_there_is_doubt() -> None:
    doubt = story((said(9.0, 812), at(9.5)))
    assert judge({2: doubt}, 148.9, LIMITS).unsure == (2,)
    assert judge({2: doubt}, 149.0, LIMITS).unsure == ()


@pytest.mark.parametrize(
    ("here", "unsure"),
    [
        (replace(STANDS, unanswered_since_s=None), True),
        (replace(STANDS, unanswered_since_s=27.1), True),
        (replace(STANDS, unanswered_since_s=27.0), False),
        (replace(STANDS, askable=False), False),
        (replace(STANDS, slot_changed_s=29.0), False),
    ],
)
def test_the_first_answer_is_waited_for(here: Here, unsure: bool) -> None:
    assert judge({2: story((None, here))}, 30.0, LIMITS).unsure == ((2,) if unsure else ())


def test_the_first_answer_is_compared_before_anything_starts() -> None:
    assert judge({2: story((said(11.0, 700), at(10.0)))}, 30.0, LIMITS).unsure == (2,)
    unread = replace(STANDS, slot_read_s=None)
    assert judge({2: story((said(11.0, 700), unread))}, 30.0, LIMITS).unsure == (2,)
    assert judge({2: story((said(11.0, 700), at(11.0)))}, 30.0, LIMITS).unsure == ()
    of_earlier_version = story((said(11.0), at(11.0)))
    assert judge({2: of_earlier_version}, 30.0, LIMITS).unsure == ()


def test_a_member_that_asks_and_has_no_slot_here_stops_every_start() -> None:
    """On new, empty volumes nobody is known who could be asked; the others ask this host."""

    def judged(now_s: float, last_s: float, read_s: float | None) -> Judgement:
        return judge({}, now_s, LIMITS, {2: Asking(10.0, last_s)}, read_s)

    assert judged(10.0, 10.0, 9.5) == Judgement(unsure=(2,)), "its slot may come"
    assert judged(15.0, 15.0, 14.9).unsure == (2,)
    assert judged(15.0, 15.0, None).unsure == (2,), "nothing was read"
    found = judged(15.1, 15.0, 15.0)
    assert found.unfit.startswith("host id 2 asked over the network") and not found.unsure
    assert judged(154.9, 15.0, 154.0).unfit, "its host may live for so long after its last question"
    assert judged(155.0, 15.0, 154.0) == Judgement()
