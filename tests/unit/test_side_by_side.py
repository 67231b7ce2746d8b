# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests in forked processes (tests/side_by_side.py): each case is a small run of pytest."""

from __future__ import annotations

import os
import threading

import pytest

pytest_plugins = ("pytester",)

GOOD = """
def test_good():
    pass
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Where the tests of the small run are. Other plugins are not loaded: each costs its time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    return pytester


def ran(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """A run in three processes."""
    return pytester.runpytest_inprocess(
        "-q", "-p", "tests.side_by_side", "--processes", "3", *options
    )


def test_each_test_runs_once_and_those_of_a_file_in_one_process(run: pytest.Pytester) -> None:
    text = """
        import os
        import pytest

        @pytest.fixture(scope="module")
        def made():
            with open("made", "a") as file:
                print(os.path.basename(__file__), os.getpid(), file=file)
            return os.getpid()

        @pytest.mark.parametrize("number", range(5))
        def test_it(made, number, tmp_path):
            assert made == os.getpid() != {parent}
            (tmp_path / "x").touch(exist_ok=False)
            with open("ran", "a") as file:
                print(os.path.basename(__file__), number, file=file)
        """
    text = text.replace("{parent}", str(os.getpid()))
    run.makepyfile(test_a=text, test_b=text, test_c=text, test_d=text, test_e=text)
    result = ran(run)
    result.assert_outcomes(passed=25)
    lines = (run.path / "ran").read_text().splitlines()
    assert sorted(lines) == [f"test_{file}.py {n}" for file in "abcde" for n in range(5)]
    made = [line.split() for line in (run.path / "made").read_text().splitlines()]
    assert sorted(name for name, _ in made) == [f"test_{file}.py" for file in "abcde"]


def test_what_fails_is_shown_with_what_it_printed(run: pytest.Pytester) -> None:
    run.makepyfile(
        test_a=GOOD,
        test_b="""
        import subprocess
        import pytest

        @pytest.fixture
        def broken():
            yield
            raise OSError("at its end")

        def test_bad():
            print("what was seen")
            subprocess.run(["echo", "by a child"])
            assert 1 == 2, "not equal"

        def test_leaves(broken):
            pass

        def test_skipped():
            pytest.skip("not here")
        """,
    )
    result = ran(run)
    result.assert_outcomes(passed=2, failed=1, errors=1, skipped=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*not equal*", "*what was seen*", "by a child", "FAILED test_b.py::test_bad*"]
    )
    result.stdout.fnmatch_lines(["*OSError: at its end*"])


def test_a_process_that_dies_fails_the_run_and_the_test_is_named(run: pytest.Pytester) -> None:
    run.makepyfile(
        test_a=GOOD,
        test_b="""
        import os

        def test_dies():
            os._exit(0)

        def test_after():
            pass
        """,
    )
    result = ran(run)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*a process of the tests died in test_b.py::test_dies*"])


def test_what_a_process_leaves_behind_at_its_end_fails_the_run(run: pytest.Pytester) -> None:
    run.makeini("[pytest]\nfilterwarnings = error\n")
    run.makepyfile(
        test_a="""
        class Late:
            def __del__(self):
                raise ValueError("too late")

        def test_leaves_a_circle():
            late = Late()
            late.itself = late
        """
    )
    result = ran(run)
    assert result.ret != pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["*after its last*", "*ValueError: too late*"], consecutive=False)


def test_the_first_failure_ends_the_run_where_that_is_asked_for(run: pytest.Pytester) -> None:
    run.makepyfile(
        test_a="""
        import time

        def test_bad():
            assert False

        def test_waits():
            time.sleep(600)
        """,
        test_b="""
        import time

        def test_waits():
            time.sleep(600)
        """,
    )
    result = ran(run, "-x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])


def test_the_longest_file_of_the_last_run_comes_first(run: pytest.Pytester) -> None:
    """Before there was a run, the largest one does."""
    text = """
        import os, time

        def test_it():
            time.sleep({0})
            with open("order", "a") as file:
                print(os.path.basename(__file__), file=file)
        """
    run.makepyfile(
        test_large=text.replace("{0}", "0") + "#" * 99, test_long=text.replace("{0}", "1")
    )
    for _ in range(2):
        result = run.runpytest_inprocess("-q", "-p", "tests.side_by_side", "--processes", "1")
        result.assert_outcomes(passed=2)
    assert (run.path / "order").read_text().split() == [
        *("test_large.py", "test_long.py"),
        *("test_long.py", "test_large.py"),
    ]


def test_a_thread_that_a_module_starts_when_it_is_imported_is_an_error(
    run: pytest.Pytester,
) -> None:
    run.makepyfile(
        test_a="""
        import threading

        ended = threading.Event()
        thread = threading.Thread(target=ended.wait, name="of-the-module")
        thread.ended = ended
        thread.start()

        def test_good():
            pass
        """
    )
    try:
        result = ran(run)
        assert result.ret == pytest.ExitCode.INTERNAL_ERROR
        result.stdout.fnmatch_lines(["*not there any more*of-the-module*"])
    finally:
        (thread,) = (one for one in threading.enumerate() if one.name == "of-the-module")
        thread.ended.set()  # type: ignore[attr-defined]


def test_without_a_cache_the_tests_run_as_well(run: pytest.Pytester) -> None:
    run.makepyfile(test_a=GOOD)
    ran(run, "-p", "no:cacheprovider").assert_outcomes(passed=1)


def test_where_a_file_cannot_be_collected_nothing_runs(run: pytest.Pytester) -> None:
    run.makepyfile(test_a=GOOD, test_b="import nothing_of_that_name\n")
    result = ran(run)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(errors=1)
