# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lab test that failed is tried once more, on a new lab (docs/decisions/0082).

Real parts on a busy machine fail now and then for reasons of their own, and one such failure must
not cost a run of half an hour. Nor may it be hidden: a race of the product looks the same.

1. The first failure is printed in full at the end, as FLAKY, with its cause. Somebody looks at it.
2. More than FLAKY_MAX such tests fail the run.
3. A broken law (LawBroken) is never tried again: once is enough.
4. What a failed test leaves behind is nobody's lab: every fixture is ended, so that the second
   try, and the tests after a second failure, have a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from _pytest.runner import runtestprotocol

from .errors import LawBroken

FLAKY_MAX = 2


@dataclass(frozen=True)
class Flaky:
    """A test that failed, and passed when it was tried again. `cause`: the first line of what it
    failed with at first; `told`: all that its first try has to say."""

    nodeid: str
    cause: str
    told: str


_LAW = "ended_by_a_broken_law"
#: On a report of a test that passed at its second try: (cause, told). Plain text, since its reports
#: are all that a process of pytest-xdist hands to the one that prints.
_FIRST_TRY = "first_try"


def _found(terminal: pytest.TerminalReporter) -> list[Flaky]:
    reports = [report for kind in terminal.stats.values() for report in kind]
    marked = [report for report in reports if hasattr(report, _FIRST_TRY)]
    return [Flaky(report.nodeid, *getattr(report, _FIRST_TRY)) for report in marked]


def run(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test, a second time where it failed. A hook: pytest_runtest_protocol."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, nextitem=nextitem, log=False)
    failed = _failed(item, reports)
    if failed and not any(getattr(report, _LAW, False) for report in failed):
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        _tell(failed, reports, _failed(item, reports))
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _failed(item: pytest.Item, reports: list[pytest.TestReport]) -> list[pytest.TestReport]:
    """The reports of failures. Where there are any, every fixture is ended: the second try needs a
    new lab. An error of that end is one more report, and is added to `reports`."""
    if any(report.failed for report in reports):
        end = pytest.CallInfo.from_call(
            lambda: item.session._setupstate.teardown_exact(None), when="teardown"
        )
        if end.excinfo is not None:
            reports.append(pytest.TestReport.from_item_and_call(item, end))
            note_law(reports[-1], end)
    return [report for report in reports if report.failed]


def _tell(
    failed: list[pytest.TestReport],
    reports: list[pytest.TestReport],
    again: list[pytest.TestReport],
) -> None:
    """Keep the first failure: for the end of the run, or beside the second one. `reports`: of the
    second try; `again`: those of them that failed."""
    if not again:
        told = "\n".join(f"in its {report.when}:\n{whole(report)}" for report in failed)
        setattr(reports[0], _FIRST_TRY, (_cause(failed[0]), told))
        return
    for report in failed:
        again[0].sections.append((f"the first try failed too: {report.when}", whole(report)))


def _cause(report: pytest.TestReport) -> str:
    """The first line of what it failed with."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = report.longreprtext if crash is None else crash.message
    return str(text).partition("\n")[0]


def note_law(report: pytest.TestReport, call: pytest.CallInfo[None]) -> None:
    """Mark the report of a test that a broken law has ended; of pytest_runtest_makereport."""
    if call.excinfo is not None and _is_law(call.excinfo.value):
        setattr(report, _LAW, True)


def _is_law(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_law, error.exceptions))
    return isinstance(error, LawBroken)


def whole(report: pytest.TestReport) -> str:
    """Everything that the report has to say."""
    parts = [report.longreprtext]
    parts += [f"----- {name} -----\n{text}" for name, text in report.sections]
    return "\n".join(parts)


def summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what failed at first, in full, and a line for each. A hook: pytest_terminal_summary."""
    terminal = terminalreporter
    found = _found(terminal)
    for flaky in found:
        terminal.write_sep("_", f"FLAKY {flaky.nodeid}: failed, and passed on a new lab")
        terminal.write_line(flaky.told)
    for flaky in found:
        terminal.write_line(f"FLAKY {flaky.nodeid} - {flaky.cause}", yellow=True)
    if found:
        terminal.write_line(
            "Each of them is a test that does not wait for what it needs, or a race of the product:"
            " find out which"
        )
    if len(found) > FLAKY_MAX:
        terminal.write_line(f"{len(found)} are flaky, more than {FLAKY_MAX}: it fails", red=True)


def finish(session: pytest.Session) -> None:
    """Fail a run that passed, where too many tests failed at first; only the process that prints
    knows their number. A hook: pytest_sessionfinish."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    too_many = terminal is not None and len(_found(terminal)) > FLAKY_MAX
    if too_many and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
