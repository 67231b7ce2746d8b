# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's Chromium for a test, in another network namespace where that is asked for; and where
its pictures go."""

from __future__ import annotations

import contextlib
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAM = "/usr/bin/chromium"
ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
#: A name of this machine that is no secure context for a browser, as an address of another one.
ELSEWHERE = "elsewhere.test"
#: The sandbox needs another user than root.
ARGUMENTS = ("--no-sandbox", f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1")
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1280, "height": 900}

needed = pytest.mark.skipif(
    shutil.which(PROGRAM) is None, reason="chromium is not installed; scripts/setup does it"
)


@contextlib.contextmanager
def browser(network_of: int | None = None) -> Iterator[Browser]:
    """A headless Chromium; `network_of`: in the network namespace of that process."""
    with tempfile.TemporaryDirectory(prefix="ha-chromium-") as folder:
        program = Path(PROGRAM)
        if network_of is not None:
            program = Path(folder) / "chromium"
            program.write_text(f'#!/bin/sh\nexec nsenter -t {network_of} -n -- {PROGRAM} "$@"\n')
            program.chmod(program.stat().st_mode | stat.S_IXUSR)
        with sync_playwright() as playwright:
            found = playwright.chromium.launch(
                executable_path=program,
                args=ARGUMENTS,
            )
            try:
                yield found
            finally:
                found.close()


def keep(page: Page, name: str) -> None:
    """A picture of the whole page, for people to look at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


class Complaints:
    """What the browser says against a page: errors of scripts, breaches of the policy, requests
    that go elsewhere."""

    def __init__(self, page: Page, allowed: str) -> None:
        self.found: list[str] = []
        page.on("pageerror", lambda error: self.found.append(f"error: {error}"))
        page.on("console", lambda said: self._console(said.type, said.text))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith(allowed) else self.found.append(request.url)
            ),
        )

    def _console(self, kind: str, text: str) -> None:
        # A broker that is gone makes the browser say so.
        if kind in ("error", "warning") and "net::ERR" not in text and "status of" not in text:
            self.found.append(f"{kind}: {text}")
