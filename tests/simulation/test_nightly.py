# SPDX-License-Identifier: LGPL-2.1-or-later
"""A night's seeds: in parts, gone on with after a break, and summed up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.simulation import nightly
from tests.simulation.nightly import OtherRun, Part
from tests.simulation.seeds import Result
from tests.simulation.world import Outage

HOSTS, MOMENTS = (2, 3), 1


class Seeds:
    """Runs that cost nothing. `broken`: the seeds that break a law; `dies_at`: the run is killed
    before that seed."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.broken: set[int] = set()
        self.dies_at: int | None = None

    def run(
        self,
        seeds: Iterable[int],
        hosts: tuple[int, int],
        processes: int,
        moments: int,
        vms: tuple[int, int],
    ) -> Iterator[Result]:
        for seed in seeds:
            if seed == self.dies_at:
                raise KeyboardInterrupt
            self.ran.append(seed)
            law = "law 'up' broken at 1.000: planted" if seed in self.broken else ""
            faults, outages = Counter({"power cut": 2}), [Outage(1.0, 61.0, "first start")]
            yield Result(seed, 3, 3600.0, 1800.0, 1.0, faults, outages, "", law)


@pytest.fixture
def seeds(monkeypatch: pytest.MonkeyPatch) -> Seeds:
    seeds = Seeds()
    monkeypatch.setattr(nightly, "run_seeds", seeds.run)
    return seeds


NOW = nightly.Header("c0de", HOSTS, MOMENTS)
LATER = nightly.Header("0ther", HOSTS, MOMENTS)


def run(
    folder: Path,
    part: Part | None = None,
    wanted: nightly.Header = NOW,
    count: int = 10,
    **on: bool,
) -> list[nightly.Line]:
    return nightly.run(range(count), part or Part(), folder, wanted, 1, lambda text: None, **on)


def test_the_parts_are_all_of_it(seeds: Seeds, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        run(tmp_path, Part(number, 3))
    assert sorted(seeds.ran) == [*range(10)]
    assert len([*tmp_path.iterdir()]) == 3


def test_what_is_there_is_not_run_again(seeds: Seeds, tmp_path: Path) -> None:
    """The last line of a run that was killed may be half a line."""
    seeds.dies_at = 6
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    path = Part().file(tmp_path)
    path.write_bytes(path.read_bytes()[:-30])
    seeds.dies_at, before = None, len(seeds.ran)
    assert {line.seed for line in run(tmp_path)} == {*range(10)}
    assert seeds.ran[before:] == [5, 6, 7, 8, 9]
    assert len(run(tmp_path)) == 10 and len(seeds.ran) == before + 5


def test_a_file_of_another_run_is_refused(seeds: Seeds, tmp_path: Path) -> None:
    run(tmp_path)
    for other in (nightly.Header("c0de", HOSTS, 2), nightly.Header("c0de", HOSTS, 1, (1, 9))):
        with pytest.raises(OtherRun, match="move it away"):
            run(tmp_path, wanted=other, over_codes=True)
    with pytest.raises(OtherRun, match="--over-codes"):
        run(tmp_path, wanted=LATER)


def test_other_code_goes_on_where_it_may(seeds: Seeds, tmp_path: Path) -> None:
    """Days later, and once more on the first code: what has run is not run again, by any."""
    run(tmp_path, count=4)
    run(tmp_path, wanted=LATER, count=7, over_codes=True)
    lines = run(tmp_path, count=9, over_codes=True)
    assert seeds.ran == [*range(9)]
    assert [line.code for line in lines] == ["c0de"] * 4 + ["0ther"] * 3 + ["c0de"] * 2
    assert nightly.read(Part().file(tmp_path), LATER, over_codes=True) == lines
    assert "of these seeds 3 ran on other code, of 1 kinds" in nightly.told(lines, NOW)


def test_a_run_of_several_vms_is_run_again_with_them(seeds: Seeds, tmp_path: Path) -> None:
    seeds.broken = {4}
    several = nightly.Header("c0de", HOSTS, MOMENTS, (1, 12))
    lines = run(tmp_path, wanted=several)
    assert any(text.endswith("--moments 1 --vms 1..12") for text in nightly.told(lines, several))


def test_a_broken_law_is_told_and_stops_nothing(seeds: Seeds, tmp_path: Path) -> None:
    seeds.broken = {4}
    text = "\n".join(nightly.told(run(tmp_path), NOW))
    assert "10 seeds, 10.0 cluster-hours (30.0 host-hours)" in text
    assert "power cut 20" in text
    assert "seed 4 with 3 hosts: law 'up' broken" in text
    assert "--seed 4 --trace --hosts 2..3 --moments 1" in text
    assert text.endswith("1 of 10 seeds broke a law")


def test_a_night_without_one(seeds: Seeds, tmp_path: Path) -> None:
    assert [*nightly.told(run(tmp_path), NOW)][-1] == "no law was broken"
