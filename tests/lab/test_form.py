# SPDX-License-Identifier: LGPL-2.1-or-later
"""The proof that a user would ask for: a form of two pages, its state in the guest's RAM, filled
in by a real browser while the VM moves to another host between the pages."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect, sync_playwright

from .cluster import Cluster
from .guest import FORM_PATH
from .layout import GUEST_ADDRESS
from .moving import boots, order, others, settled, source_of
from .visitors import Visitors

ANSWER_MS = 20_000


@pytest.fixture
def browser_in_the_lab(lab: Cluster, tmp_path: Path) -> Path:
    """Chromium, started in the lab's network."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "chromium is not there; run scripts/setup"
    script = tmp_path / "chromium-in-the-lab"
    script.write_text(f'#!/bin/sh\nexec nsenter -t {lab.switch_pid} -n {chromium} "$@"\n')
    script.chmod(0o755)
    return script


def test_a_form_is_filled_in_across_a_live_migration(
    lab: Cluster, browser_in_the_lab: Path
) -> None:
    source = source_of(lab)
    target = others(lab, source)[0]
    before = boots(lab)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_in_the_lab, args=["--no-sandbox", "--disable-gpu"]
        )
        tab = browser.new_page()
        tab.set_default_timeout(ANSWER_MS)
        expect.set_options(timeout=ANSWER_MS)
        tab.goto(f"http://{GUEST_ADDRESS}{FORM_PATH}")
        tab.get_by_label("First").fill("two coffees")
        tab.get_by_role("button", name="Send").click()
        expect(tab.get_by_role("heading")).to_have_text("Page two")
        tab.get_by_label("Second").fill("no sugar")

        with Visitors(lab.switch_pid) as visitors:
            done = order(lab, source, "migrate", "--to", target)
            assert done.returncode == 0, done.stderr
            assert lab.engine_host() == target

            tab.get_by_role("button", name="Send").click()
            expect(tab.get_by_role("heading")).to_have_text("Thank you")
        assert tab.locator("#first").inner_text() == "two coffees"
        assert tab.locator("#second").inner_text() == "no sugar"
        browser.close()
    print(
        f"{visitors.asked} requests, {len(visitors.failed)} failed, "
        f"longest gap between answers {visitors.longest_gap_s():.2f} s"
    )
    assert len(visitors.answers) == visitors.asked and not visitors.failed
    settled(lab, target)
    assert boots(lab) == before
