# SPDX-License-Identifier: LGPL-2.1-or-later
"""The page in Cockpit, in a real cockpit-ws with a real cockpit-bridge and a browser; the command
`ha-agent` alone is a double, which answers with a real status and writes down what it was asked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from tests.fakes import vms
from tests.fakes.statuses import UP, host, status

from . import chromium
from .chromium import DESK, PHONE, ROOT, keep

WS = Path("/usr/lib/cockpit/cockpit-ws")
pytestmark = [
    chromium.needed,
    pytest.mark.skipif(
        not (WS.exists() and shutil.which("cockpit-bridge")),
        reason="cockpit-ws and cockpit-bridge are not installed",
    ),
]
UP_STATUS = status(host(1, UP, state="EngineUp", local=True), host(2))
COMMAND = """#!/bin/sh
echo "$*" >> {folder}/asked
case "$*" in
"--status --json") cat {folder}/status.json ;;
"--status") printf 'ha: x\\nwrong:\\n  host3 is silent: <b>it</b> wrote nothing\\n\\nhosts:\\n' ;;
*) echo "done: $*" ;;
esac
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as found:
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A home with the page in it, and the double of the command on the path."""
    page = tmp_path / "share" / "cockpit" / "ha-agent"
    shutil.copytree(ROOT / "packaging" / "cockpit", page)
    command = tmp_path / "bin" / "ha-agent"
    command.parent.mkdir()
    command.write_text(COMMAND.format(folder=tmp_path))
    command.chmod(0o755)
    hosts = (host(1, UP, state="EngineUp", local=True), host(2), host(3))
    made = msgspec.to_builtins(status(*hosts), str_keys=True)
    made["hosts"]["3"]["hostname"] = "<script>alert(1)</script>"
    (tmp_path / "status.json").write_text(json.dumps(made))
    return tmp_path


@pytest.fixture
def cockpit(folder: Path) -> Iterator[str]:
    """The address of the page; its session is this process's user, without a login."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    more = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "XDG_DATA_HOME": f"{folder}/share",
        "XDG_CONFIG_DIRS": str(folder),
        "HOME": str(folder),
    }
    words = (WS, "--no-tls", "--address", "127.0.0.1", "--port", str(port))
    process = subprocess.Popen(
        [str(word) for word in (*words, "--local-session=cockpit-bridge")],
        env={**os.environ, **more},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(300):
            with socket.socket() as line:
                if line.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/cockpit/@localhost/ha-agent/index.html"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20.0)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_it_shows_the_cluster_and_gives_orders(
    browser: Browser, cockpit: str, folder: Path, size: dict[str, int]
) -> None:
    page = browser.new_page(viewport=size)  # type: ignore[arg-type]
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(cockpit)
    expect(page.get_by_role("heading", level=1)).to_contain_text(
        "is up and healthy on host1", timeout=30_000
    )
    expect(page.locator("#hosts tr")).to_have_count(3)
    expect(page.locator("#hosts")).to_contain_text("<script>alert(1)</script>")
    expect(page.locator("#wrong li")).to_have_text("host3 is silent: <b>it</b> wrote nothing")
    assert Axe().run(page).response["violations"] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    keep(page, f"cockpit-{size['width']}")
    page.get_by_label("Host", exact=True).select_option("2")
    page.get_by_role("button", name="Maintenance of host2").click()
    expect(page.get_by_role("dialog")).to_contain_text("ha-agent maintenance local --for 8h")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Maintenance of host2").click()
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("#answer")).to_contain_text("done: maintenance local")
    orders = [line for line in asked(folder) if not line.startswith("--status")]
    assert orders == ["maintenance local --for 8h --reason set in Cockpit --host 2"]
    page.close()
    assert errors == []


def test_each_of_several_vms_is_shown_and_none_that_is_down_is_green(
    browser: Browser, cockpit: str, folder: Path
) -> None:
    """The heading was the engine's alone, and green while another VM was down."""
    words = {**vms.WORDS, 1: {vms.ENGINE: vms.up(), vms.WEB: vms.up()}, 2: {vms.SSO: vms.up()}}
    lacks_db = vms.status(words, n_plus_1=())
    (folder / "status.json").write_bytes(msgspec.json.encode(lacks_db))
    page = browser.new_page(viewport=DESK)  # type: ignore[arg-type]
    page.goto(cockpit)
    expect(page.locator("h1.bad")).to_have_text("4 of 5 VMs are up, 4 healthy", timeout=30_000)
    rows = page.locator("#vms tr")
    expect(rows).to_have_count(5)
    expect(rows.nth(0)).to_contain_text("engine")
    expect(rows.nth(0)).to_contain_text("up, healthy")
    expect(page.locator("#vms tr", has_text="db").locator("td.bad")).not_to_be_empty()
    assert Axe().run(page).response["violations"] == []
    keep(page, "cockpit-vms")
    reached = msgspec.structs.replace(UP_STATUS.engine, reached=False)
    unreached = msgspec.structs.replace(UP_STATUS, engine=reached)
    (folder / "status.json").write_bytes(msgspec.json.encode(unreached))
    expect(page.locator("h1.warn")).to_contain_text("no other host reaches it", timeout=15_000)
    expect(page.locator("#vms-part")).to_be_hidden()
    expect(page.locator("#hosts")).to_contain_text("ready (EngineDown)")
    page.close()


def test_a_broker_that_is_gone_leaves_nothing_green(
    browser: Browser, cockpit: str, folder: Path
) -> None:
    page = browser.new_page()
    page.goto(cockpit)
    expect(page.locator("h1.good")).to_have_count(1, timeout=30_000)
    (folder / "status.json").write_text("")
    expect(page.locator("h1.bad")).to_have_text(
        "This host’s broker gives no status", timeout=15_000
    )
    expect(page.locator(".good:visible")).to_have_count(0)
    expect(page.locator("#orders-part")).to_be_hidden()
    page.close()


def test_a_host_of_no_cluster_can_join_one(browser: Browser, cockpit: str, folder: Path) -> None:
    if Path("/etc/ha-agent/ha-agent.toml").exists():
        pytest.skip("this machine is a member")
    (folder / "status.json").write_text("")
    page = browser.new_page()
    page.goto(cockpit)
    page.get_by_label("Token").fill("a-token", timeout=30_000)
    page.get_by_role("button", name="Join").click()
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("#answer")).to_contain_text("done: join --yes a-token")
    page.close()
