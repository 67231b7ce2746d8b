# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tests side by side, in processes that are forked once everything is collected.

    python -m pytest -p tests.side_by_side --processes 6 tests/unit

To collect the unit tests takes 6 to 8 s of a processor. A worker of pytest-xdist is an interpreter
of its own that collects everything again, and the process that prints pays for each message: with
four workers that was a third of all the processor's time (docs/decisions/0087). Here one process
collects and forks. More processes than cores then cost next to nothing, and while one waits for a
deadline or a child, the others have the cores.

Rules:

1. A process takes one file at a time: what a module's fixtures make is made once.
2. The files that took longest in the last run come first (pytest's cache knows). Before them come
   those that it does not know, the largest first.
3. A process that dies fails the run, which names the test that the process was in.
4. What a process leaves behind (a file that nobody closed, the error of a thread) fails the run.

Reports, `--durations`, `-x`, `--lf` and `--junitxml` are as with one process. A debugger needs one
process: leave `--processes` out.
"""

from __future__ import annotations

import gc
import os
import pickle
import selectors
import signal
import struct
import threading
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pytest

#: Where pytest's cache keeps how long each file took: file -> s.
SECONDS = "side_by_side/seconds"
#: In the pipe of what is left to do: which of the files.
NUMBER = struct.Struct("=i")
#: Before each message of a process: its length in bytes.
LENGTH = struct.Struct("=I")
READ_BYTES = 1 << 18


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processes",
        type=int,
        default=0,
        help="run the tests in so many forked processes, side by side (0: in this one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.processes:
        config.pluginmanager.register(_Parent(config), "side-by-side")


@dataclass(frozen=True, slots=True)
class Began:
    """A process begins this test."""

    nodeid: str


@dataclass(frozen=True, slots=True)
class Ran:
    """A process is through with a test."""

    nodeid: str
    location: tuple[str, int | None, str]
    reports: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Ended:
    """A process is through with everything; `trouble`: what it failed by, or left behind."""

    trouble: str


@dataclass(slots=True)
class _Process:
    pid: int
    reading: int
    received: bytearray = field(default_factory=bytearray)
    #: The test that it is in; "": none.
    inside: str = ""
    ended: bool = False


class _Parent:
    """The process that collects, forks and prints."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        #: None with `-p no:cacheprovider`.
        self.cache: pytest.Cache | None = getattr(config, "cache", None)
        #: The threads that were there before the tests were collected: no test waits for them.
        self.threads = set(threading.enumerate())
        self.processes: list[_Process] = []
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """True: the tests ran; None: there is nothing to run, and pytest's own loop says why."""
        if session.testsfailed or self.config.option.collectonly or not session.items:
            return None
        try:
            self._fork(session, self._files(session.items))
            self._listen(session)
        finally:
            self._end()
        self._remember()
        return True

    def _files(self, items: list[pytest.Item]) -> list[list[pytest.Item]]:
        """The tests of each file, the longest file first."""
        files: dict[Path, list[pytest.Item]] = {}
        for item in items:
            files.setdefault(item.path, []).append(item)
        known = self._known()

        def length(path: Path) -> tuple[float, int]:
            return known.get(_file(files[path][0].nodeid), float("inf")), path.stat().st_size

        return [files[path] for path in sorted(files, key=length, reverse=True)]

    def _known(self) -> dict[str, float]:
        known = {} if self.cache is None else self.cache.get(SECONDS, {})
        return known if isinstance(known, dict) else {}

    def _remember(self) -> None:
        if self.cache is not None:
            self.cache.set(SECONDS, self._known() | self.seconds)

    def _fork(self, session: pytest.Session, files: list[list[pytest.Item]]) -> None:
        started = set(threading.enumerate()) - self.threads
        assert not started, f"after a fork they are not there any more: {started}"
        # A pipe holds 64 KiB, the numbers of 16,000 files: this does not wait.
        work, left = os.pipe()
        os.write(left, b"".join(NUMBER.pack(number) for number in range(len(files))))
        os.close(left)
        base = self.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        for _ in range(min(self.config.option.processes, len(files))):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                _Child(session, files, work, writing, base).run()
            os.close(writing)
            self.processes.append(_Process(pid, reading))
        os.close(work)

    def _listen(self, session: pytest.Session) -> None:
        """Until all processes have ended, or one of them or `-x` ends the run."""
        with selectors.DefaultSelector() as selector:
            for process in self.processes:
                selector.register(process.reading, selectors.EVENT_READ, process)
            while selector.get_map():
                for key, _ in selector.select():
                    process = key.data
                    received = os.read(process.reading, READ_BYTES)
                    process.received += received
                    for message in _messages(process.received):
                        self._take(session, process, message)
                    if not received:
                        selector.unregister(process.reading)
                        if not process.ended:
                            session.shouldfail = (
                                f"a process of the tests died in {process.inside or 'no test'};"
                                " the other tests of its file were not run"
                            )
                            raise session.Failed(session.shouldfail)

    def _take(self, session: pytest.Session, process: _Process, message: object) -> None:
        match message:
            case Began(nodeid):
                process.inside = nodeid
            case Ran(nodeid, location, reports):
                process.inside = ""
                hook = self.config.hook
                hook.pytest_runtest_logstart(nodeid=nodeid, location=location)
                for data in reports:
                    report = hook.pytest_report_from_serializable(config=self.config, data=data)
                    self.seconds[_file(nodeid)] += report.duration
                    hook.pytest_runtest_logreport(report=report)
                hook.pytest_runtest_logfinish(nodeid=nodeid, location=location)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
            case Ended(trouble):
                process.ended = True
                if trouble:
                    session.shouldfail = f"in a process of the tests, after its last:\n{trouble}"
                    raise session.Failed(session.shouldfail)
            case _:
                raise AssertionError(f"unknown message: {message!r}")

    def _end(self) -> None:
        """No process of this run is left, whatever ended it."""
        for process in self.processes:
            os.close(process.reading)
            if not process.ended:
                os.kill(process.pid, signal.SIGKILL)
            os.waitpid(process.pid, 0)


class _Child:
    """A process that runs the tests of one file after the other."""

    def __init__(
        self,
        session: pytest.Session,
        files: list[list[pytest.Item]],
        work: int,
        writing: int,
        base: Path,
    ) -> None:
        self.session = session
        self.config = session.config
        self.files = files
        self.work = work
        self.writing = writing
        #: The temporary folder of this run.
        self.base = base
        self.reports: list[dict[str, Any]] = []

    def run(self) -> NoReturn:
        """Never returns: what the parent has still to do at its end is not this process's."""
        trouble = ""
        try:
            self._begin()
            for number, tests in self._left():
                self._folder(number)
                self._run(tests)
            self._leave()
        except BaseException:
            trouble = traceback.format_exc()
        try:
            self._tell(Ended(trouble))
        finally:
            os._exit(1 if trouble else 0)

    def _begin(self) -> None:
        plugins = self.config.pluginmanager
        # The file that captures what tests print would be shared with the others.
        capture = plugins.getplugin("capturemanager")
        capture.stop_global_capturing()
        capture.start_global_capturing()
        # The parent prints.
        plugins.unregister(name="terminalreporter")
        plugins.register(self)

    def _left(self) -> Iterator[tuple[int, list[pytest.Item]]]:
        while number := os.read(self.work, NUMBER.size):
            (index,) = NUMBER.unpack(number)
            yield index, self.files[index]

    def _folder(self, number: int) -> None:
        """The temporary folders of a file's tests are in one of their own: pytest reads the whole
        folder for each that it makes."""
        factory = self.config._tmp_path_factory  # type: ignore[attr-defined]
        factory._basetemp = self.base / f"file-{number}"
        factory._basetemp.mkdir(mode=0o700)

    def _run(self, tests: list[pytest.Item]) -> None:
        for test, following in zip(tests, [*tests[1:], None], strict=True):
            self._tell(Began(test.nodeid))
            self.config.hook.pytest_runtest_protocol(item=test, nextitem=following)
            self._tell(Ran(test.nodeid, test.location, self.reports))
            self.reports = []

    def _leave(self) -> None:
        """Raises what pytest itself finds at the end of a run."""
        gc.collect()
        self.config._ensure_unconfigure()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append(
            self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        )

    def _tell(self, message: Began | Ran | Ended) -> None:
        packed = pickle.dumps(message)
        left = memoryview(LENGTH.pack(len(packed)) + packed)
        while left:
            left = left[os.write(self.writing, left) :]


def _messages(received: bytearray) -> Iterator[object]:
    """The messages that are there whole; they are taken out of `received`."""
    while len(received) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(received)[0]
        if len(received) < end:
            return
        yield pickle.loads(received[LENGTH.size : end])
        del received[:end]


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0]
