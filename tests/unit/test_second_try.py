# SPDX-License-Identifier: LGPL-2.1-or-later
"""A failed lab test is tried once more on a new lab, and nothing of it is hidden: each case here
is a small run of pytest whose conftest uses tests/lab/second_try.py as that of the lab does."""

from __future__ import annotations

from pathlib import Path

import pytest

# Both are imported here, so that the small runs share them: one that imports a module anew would
# have a second LawBroken.
from tests.lab.errors import LawBroken
from tests.lab.second_try import FLAKY_MAX

pytest_plugins = ("pytester",)

CONFTEST = """
import pytest
from tests.lab import second_try

pytest_runtest_protocol = second_try.run
pytest_terminal_summary = second_try.summary
pytest_sessionfinish = second_try.finish

LABS = []

@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    second_try.note_law(outcome.get_result(), call)

@pytest.fixture(scope="session")
def lab():
    LABS.append(True)
    yield len(LABS)
    print("lab", len(LABS), "is down")
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(CONFTEST)
    return pytester


def test_what_passes_at_the_second_try_is_flaky_and_told_in_full(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        def test_before(lab):
            assert lab == 1

        def test_racy(lab):
            print("what was seen")
            assert lab > 1, "the host was not ready"

        def test_after(lab):
            assert lab == 2, "the lab is new, for those that follow too"
        """
    )
    result = run.runpytest_inprocess("-q")
    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "*FLAKY *::test_racy: failed, and passed on a new lab*",
            "*assert lab > 1*",
            "*what was seen*",
            "FLAKY *::test_racy - AssertionError: the host was not ready",
        ]
    )


@pytest.mark.slow
def test_with_labs_side_by_side_it_is_told_and_counted_as_well(
    run: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    text = """
        import pytest
        TRIED = set()

        @pytest.mark.parametrize("number", range(2))
        def test_racy(number, lab):
            first = number not in TRIED
            TRIED.add(number)
            print("what was seen of", number)
            assert not first
        """
    run.makepyfile(test_one=text, test_two=text)
    result = run.runpytest_subprocess("-q", "-n", "2", "--dist", "loadfile")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=4)
    told = result.stdout.str()
    assert "what was seen of 1" in told and f"more than {FLAKY_MAX}: it fails" in told


def test_what_fails_twice_fails_and_both_are_told(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        def test_broken(lab):
            assert not lab, f"lab number {lab}"

        def test_after(lab):
            assert lab == 3, "what failed twice leaves its lab to nobody"
        """
    )
    result = run.runpytest_inprocess("-q")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1, failed=1)
    text = result.stdout.str()
    assert "lab number 1" in text and "lab number 2" in text
    assert "the first try failed too: call" in text and "FLAKY" not in text


@pytest.mark.parametrize(("flaky", "code"), [(FLAKY_MAX, 0), (FLAKY_MAX + 1, 1)])
def test_more_than_two_flaky_ones_fail_the_run(run: pytest.Pytester, flaky: int, code: int) -> None:
    run.makepyfile(
        f"""
        import pytest
        TRIED = set()

        @pytest.mark.parametrize("number", range({flaky}))
        def test_racy(number, lab):
            first = number not in TRIED
            TRIED.add(number)
            assert not first
        """
    )
    result = run.runpytest_inprocess("-q")
    assert result.ret == code
    result.assert_outcomes(passed=flaky)
    assert (f"more than {FLAKY_MAX}: it fails" in result.stdout.str()) is bool(code)


@pytest.mark.parametrize("where", ["body", "teardown"])
def test_a_broken_law_is_not_tried_again(run: pytest.Pytester, where: str) -> None:
    run.makepyfile(
        f"""
        import pytest
        from tests.lab.errors import law

        def watch(where):
            if where == {where!r}:
                with law(1):
                    assert [] == ["two VMs"]

        @pytest.fixture
        def watched(lab):
            yield lab
            watch("teardown")

        def test_watched(watched):
            watch("body")
            assert {where!r} == "body" or not watched, "a second VM is why"
        """
    )
    result = run.runpytest_inprocess("-q")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = result.stdout.str()
    assert f"{LawBroken.__name__}: law 1" in text and "lab 2" not in text and "FLAKY" not in text


def test_a_lab_that_does_not_come_up_is_tried_again(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import pytest
        TRIES = []

        @pytest.fixture(scope="module")
        def own(lab):
            TRIES.append(lab)
            assert len(TRIES) > 1, "no lab"

        def test_on_it(own):
            pass
        """
    )
    result = run.runpytest_inprocess("-q")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["FLAKY *::test_on_it - AssertionError: no lab*"])


def test_a_lab_that_does_not_go_down_is_told_with_it(run: pytest.Pytester) -> None:
    run.makepyfile(
        """
        import pytest
        ENDED = []

        @pytest.fixture(scope="session")
        def stuck():
            yield len(ENDED)
            ENDED.append(True)
            assert len(ENDED) > 1, "it hangs"

        def test_on_it(stuck):
            assert stuck
        """
    )
    result = run.runpytest_inprocess("-q")
    assert result.ret == pytest.ExitCode.OK
    text = result.stdout.str()
    assert "in its call:" in text and "in its teardown:" in text and "it hangs" in text


def test_the_lab_does_so(pytestconfig: pytest.Config) -> None:
    text = (Path(__file__).parents[1] / "lab" / "conftest.py").read_text()
    for words in (
        "second_try.run(item, nextitem)",
        "pytest_terminal_summary = second_try.summary",
        "pytest_sessionfinish = second_try.finish",
        "second_try.note_law(report, call)",
    ):
        assert words in text
