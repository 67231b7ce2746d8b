# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dashboard before a real browser: what it shows, what it cannot be made to do, and for
whom it can be used. The brokers are real, their storage is in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from broker.api.dashboard import FILES, FOLDER
from broker.wire.status import Maintenance
from scoring.observation import OrderKind
from scoring.vm_facts import Health
from tests.fakes.slot_store import MemoryStore

from . import chromium
from .chromium import DESK, ELSEWHERE, PHONE, Complaints, keep
from .stage import TOKEN, Stage

pytestmark = chromium.needed

PAGE_BYTES_MAX = 150_000
HOSTILE = "<script>alert(1)</script>"
#: Whether no time below a plot or a strip touches the next one.
TIMES_APART = """[...document.querySelectorAll('.axis')].every((axis) => {
  const seen = [...axis.children].map((each) => each.getBoundingClientRect())
    .filter((box) => box.width > 0);
  return seen.every((box, n) => n === 0 || seen[n - 1].right + 3 < box.left);
})"""
TURNED = "host\u202e\u2066x"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.browser() as found:
        yield found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path, ("host1.example.org", HOSTILE, "host3.example.org")) as found:
        yield found


@pytest.fixture
def page(stage: Stage, browser: Browser) -> Iterator[Page]:
    """The dashboard with all hosts on it; nothing may be said against it by the browser."""
    context = browser.new_context(viewport=DESK)  # type: ignore[arg-type]
    found = context.new_page()
    complaints = Complaints(found, stage.url)
    found.goto(stage.url)
    expect(found.locator(".card")).to_have_count(3)
    yield found
    context.close()
    assert complaints.found == []


def with_token(page: Page) -> None:
    if not page.get_by_label("API token").is_visible():
        page.locator("#orders > summary").click()
    page.get_by_label("API token").fill(TOKEN)
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#buttons button")).to_have_count(5)


def test_it_answers_the_operator_s_first_questions(page: Page) -> None:
    expect(page.get_by_role("heading", level=2).first).to_have_text(
        "HostedEngine is up and healthy on host1.example.org"
    )
    expect(page.locator("#engine-bound")).to_contain_text("If host1.example.org died now")
    expect(page.locator("#engine-why")).to_contain_text("the VM is up and healthy here")
    card = page.locator(".card", has_text="host3.example.org")
    expect(card).to_contain_text("2600 of 3400")
    expect(card).to_contain_text("−800 network: no answer from 192.0.2.1")
    expect(card).to_contain_text("Whiteboard")
    expect(page.locator("#events li").first).to_be_visible()
    # A host is in the plots from the step on in which it was first seen.
    expect(page.locator("#plots svg")).to_have_count(3, timeout=20_000)
    keep(page, "page-desk")


def test_over_plain_http_from_elsewhere_no_token_is_asked_for_or_sent(
    stage: Stage, browser: Browser
) -> None:
    page = browser.new_page()
    sent: list[dict[str, str]] = []
    page.on("request", lambda request: sent.append(request.headers))
    page.goto(stage.url.replace("127.0.0.1", ELSEWHERE))
    expect(page.locator(".card")).to_have_count(3)
    assert page.evaluate("window.isSecureContext") is False
    expect(page.locator("#token-form")).to_be_hidden()
    expect(page.locator("#answer")).to_contain_text("Orders need TLS")
    # Whoever makes the form visible by hand gains nothing.
    page.evaluate("document.getElementById('token-form').hidden = false")
    page.evaluate("document.getElementById('token').value = 't'.repeat(40)")
    page.evaluate("document.getElementById('token-form').requestSubmit()")
    expect(page.locator("#answer")).to_contain_text("over TLS alone")
    assert sent and not any("authorization" in headers for headers in sent)
    page.close()


def test_what_other_hosts_write_stays_text(page: Page) -> None:
    expect(page.locator(".card", has_text=HOSTILE)).to_have_count(1)
    expect(page.locator(".card", has_text="<img src=x onerror=alert(1)>")).to_have_count(2)
    assert page.locator("img, script:not([src]), iframe, [onerror]").count() == 0


def test_what_does_not_print_is_shown_as_such(tmp_path: Path, browser: Browser) -> None:
    with Stage(tmp_path, ("host1", TURNED)) as stage:
        page = browser.new_page()
        page.goto(stage.url)
        expect(page.locator(".card bdi").nth(1)).to_have_text("host%E2%80%AE%E2%81%A6x")
        page.close()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_several_vms_stand_above_the_hosts_and_each_host_shows_its_memory(
    tmp_path: Path, browser: Browser, size: dict[str, int], colours: str
) -> None:
    with Stage(tmp_path, ("host1", "host2", "host3"), db=2) as stage:
        page = browser.new_page(viewport=size, color_scheme=colours)  # type: ignore[arg-type]
        complaints = Complaints(page, stage.url)
        page.goto(stage.url)
        rows = page.locator("#vms li")
        expect(rows).to_have_count(2)
        expect(rows.nth(1)).to_contain_text("db")
        expect(rows.nth(1)).to_contain_text("up, healthy")
        expect(rows.nth(1)).to_contain_text("on host2")
        heading = page.get_by_role("heading", level=2).first
        expect(heading).to_have_text("All 2 VMs are up and healthy")
        card = page.locator(".card", has_text="host2")
        expect(card).to_contain_text("10 GiB of 32 GiB free")
        # The line of a host names what runs there; it called the host of db "ready".
        expect(card).to_contain_text("runs db")
        expect(page.locator(".card", has_text="host1").first).to_contain_text("runs engine")
        expect(page.locator("#vms")).not_to_contain_text("0 MiB")
        short = page.locator("#banners li", has_text="if host2 dies, db has no place")
        expect(short).to_contain_text("6 GiB short (needs 8, host1 has 2)")
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert Axe().run(page).response["violations"] == []
        keep(page, f"page-vms-{size['width']}-{colours}")
        page.close()
        assert complaints.found == []


def test_one_vm_alone_has_no_list_of_vms(page: Page) -> None:
    expect(page.locator("#vms-part")).to_be_hidden()
    expect(page.locator(".card .memory").first).to_be_hidden()


def test_a_silent_host_and_maintenance_have_banners(page: Page, stage: Stage) -> None:
    stage.alive.discard(3)
    banner = page.locator("#banners .critical", has_text="host3.example.org is silent")
    expect(banner).to_contain_text("Whiteboard changed", timeout=10_000)
    with_token(page)
    page.get_by_role("button", name="Global maintenance").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("nothing starts, stops, moves or is fenced")
    expect(page.locator("#ask-no")).to_be_focused()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert not stage.brokers[0].board.global_maintenance, "who does not confirm changes nothing"
    page.get_by_role("button", name="Global maintenance").click()
    page.get_by_label("Reason").fill("a <b>new</b> switch")
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("#answer")).to_have_text("global maintenance is set.")
    mode = page.locator("#banners li", has_text="Global maintenance")
    expect(mode).to_contain_text("a <b>new</b> switch")
    expect(mode).to_contain_text("Set by api-token@host1.example.org")
    keep(page, "page-maintenance")
    page.get_by_role("button", name="End global maintenance").click()
    page.get_by_role("button", name="Do it").click()
    expect(mode).to_have_count(0)


def test_a_page_whose_host_cannot_read_says_so_of_itself(page: Page, stage: Stage) -> None:
    """The engine runs here: that is known. The others are not called silent."""
    store = stage.brokers[0].board._store
    assert isinstance(store, MemoryStore)
    store.fault = "eio"
    banner = page.locator("#banners .critical", has_text="The storage fails here")
    expect(banner).to_contain_text("What the other hosts do is not known here", timeout=10_000)
    expect(banner).to_contain_text("The others see this host silent")
    expect(page.locator("#banners li", has_text="is silent")).to_have_count(0)
    expect(page.get_by_role("heading", level=2).first).to_contain_text("up and healthy")
    expect(page.locator(".card.last-word")).to_have_count(2)
    own = page.locator(".card", has_text="this host")
    expect(own).to_contain_text("0 of 3400")
    expect(own).to_contain_text("its slot is not written")
    keep(page, "page-blind")


def test_a_silent_owner_is_not_called_down(tmp_path: Path, browser: Browser) -> None:
    with Stage(tmp_path, ("host1", "host2"), owner=2) as stage:
        page = browser.new_page()
        page.goto(stage.url)
        heading = page.get_by_role("heading", level=2).first
        expect(heading).to_contain_text("up and healthy on host2", timeout=10_000)
        stage.alive.discard(2)
        expect(heading).to_contain_text(
            "Whether HostedEngine is up is not known: host2 (id 2) wrote nothing for",
            timeout=10_000,
        )
        expect(page).to_have_title("? ha – ha-agent")
        banner = page.locator("#banners .critical", has_text="host2 is silent")
        expect(banner).to_contain_text("Nothing proves yet that it is dead.")
        expect(banner).not_to_contain_text("takeover")
        expect(page.locator("#engine.warn")).to_have_count(1)
        page.close()


def test_an_order_goes_to_the_agent_and_its_end_is_told(page: Page, stage: Stage) -> None:
    expect(page.locator("#buttons")).to_be_hidden()
    with_token(page)
    expect(page.get_by_role("button", name="Start on host1.example.org")).to_be_disabled()
    page.get_by_role("button", name="Migrate").click()
    page.get_by_label("To", exact=True).select_option("2")
    page.get_by_role("button", name="Do it").click()
    expect(page.locator("#answer")).to_contain_text("waiting")
    order = stage.call(lambda: stage.brokers[0].orders.pending(0.0))
    assert order is not None and (order.kind, order.target) == (OrderKind.MIGRATE, 2)


def test_a_wrong_token_shows_no_buttons(page: Page) -> None:
    page.get_by_label("API token").fill("wrong")
    page.get_by_role("button", name="Use it").click()
    expect(page.locator("#answer")).to_contain_text("no such token")
    expect(page.locator("#buttons")).to_be_hidden()


def test_a_broker_that_is_gone_is_said_to_be_and_comes_back(page: Page, stage: Stage) -> None:
    expect(page.locator("#link")).to_have_text("live")
    stage.wait(stage.close_door())
    expect(page.locator("#link")).to_contain_text("old", timeout=10_000)
    expect(page.locator("#link")).to_contain_text("the broker is gone", timeout=20_000)
    heading = page.get_by_role("heading", level=2).first
    expect(heading).to_contain_text("As last heard, at ")
    expect(page).to_have_title("? ha – ha-agent")
    expect(page.locator("#engine.good, .card .pill.good")).to_have_count(0)
    expect(page.get_by_text("would answer again")).to_have_count(0)
    greens = page.evaluate("""() => [...document.querySelectorAll("body *")].filter((each) =>
        ["color", "backgroundColor", "borderLeftColor", "fill"].some((name) =>
            getComputedStyle(each)[name] === "rgb(23, 109, 58)")).map((each) => each.outerHTML)""")
    assert greens == [], "what was heard last says nothing on now"
    keep(page, "page-gone")
    stage.wait(stage.open_door())
    expect(page.locator("#link")).to_have_text("live", timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desk", "phone"])
def test_axe_finds_nothing_and_it_fits_the_screen(
    stage: Stage, browser: Browser, scheme: str, size: str
) -> None:
    viewport = PHONE if size == "phone" else DESK
    context = browser.new_context(viewport=viewport, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.goto(stage.url)
    expect(page.locator(".card")).to_have_count(3)
    stage.alive.discard(3)
    expect(page.locator("#banners .critical")).to_have_count(1, timeout=10_000)
    with_token(page)
    own = page.locator(".card", has_text="this host")
    own.locator("summary").first.click()
    own.get_by_text("Monitors").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.get_by_role("button", name="Global maintenance").click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    keep(page, f"page-{size}-{scheme}-dialog")
    page.keyboard.press("Escape")
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, "nothing is scrolled sideways"
    keep(page, f"page-{size}-{scheme}")
    context.close()


def test_the_keyboard_reaches_everything(page: Page) -> None:
    with_token(page)
    page.locator("body").evaluate("body => { document.activeElement.blur(); scrollTo(0, 0) }")
    reached = set()
    page.locator(".card", has_text="this host").locator("summary").first.click()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Skip to the cluster", "Monitors", "Shut down …", "24 hours", "Metrics"} <= reached
    assert any("host3.example.org" in each for each in reached), "each host opens and closes"


def test_focus_outlives_the_updates(page: Page, stage: Stage) -> None:
    with_token(page)
    button = page.get_by_role("button", name="Migrate")
    # Before a host is there that could take it, it cannot be pressed, nor have the focus.
    expect(button).to_be_enabled(timeout=20_000)
    button.focus()
    expect(button).to_be_focused()
    before = stage.brokers[0].news.version
    stage.wait(stage.brokers[0].news.wait(before + 5, 10.0))
    expect(button).to_be_focused()


def test_the_page_is_small_and_quick(stage: Stage, browser: Browser) -> None:
    assert sum((FOLDER / name).stat().st_size for name, _ in FILES.values()) < PAGE_BYTES_MAX
    paints = []
    for _ in range(5):
        context = browser.new_context(viewport=DESK)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(stage.url)
        expect(page.locator(".card")).to_have_count(3)
        # On a busy machine the list may be there before the paint has been recorded.
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
        paints.append(
            page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        )
        moved = page.evaluate(
            "[...performance.getEntriesByType('resource'),"
            " ...performance.getEntriesByType('navigation')]"
            ".reduce((sum, entry) => sum + entry.transferSize, 0)"
        )
        context.close()
    print(f"first paint {sorted(paints)[2]:.0f} ms (median of 5), {moved} bytes moved until then")
    assert moved < PAGE_BYTES_MAX


def test_its_policy_allows_nothing_but_itself(stage: Stage, browser: Browser) -> None:
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(stage.url)
    assert answer is not None
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    expect(page.locator(".card")).to_have_count(3)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    with pytest.raises(Exception, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<img src=x onerror=alert(1)>'")
    page.evaluate("fetch('http://127.0.0.2/').catch(() => 0)")
    assert any("Content Security Policy" in text for text in said), said
    context.close()


# --- the page at night ---------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_when_all_is_well_a_phone_shows_it_in_one_screen(
    tmp_path: Path, browser: Browser, scheme: str
) -> None:
    with Stage(tmp_path, ("host1", "host2", "host3"), well=True) as stage:
        page = browser.new_page(viewport=PHONE, color_scheme=scheme)  # type: ignore[arg-type]
        page.goto(stage.url)
        expect(page.locator("#engine.good")).to_have_count(1, timeout=10_000)
        expect(page.locator("#banners li")).to_have_count(0)
        expect(page.locator(".card > details[open]")).to_have_count(0)
        expect(page.locator("#strips li")).to_have_count(2)
        expect(page.locator("#engine-since")).to_contain_text("Up since")
        # A host that this machine had no time for is ill for a beat, and its card opens.
        page.wait_for_function("document.documentElement.scrollHeight <= 900", timeout=10_000)
        keep(page, f"page-phone-well-{scheme}")
        assert Axe().run(page).response["violations"] == []
        page.close()


def test_a_host_is_one_line_until_it_is_opened_or_ill(tmp_path: Path, browser: Browser) -> None:
    with Stage(tmp_path, ("host1", "host2"), well=True) as stage:
        page = browser.new_page(viewport=DESK)  # type: ignore[arg-type]
        page.goto(stage.url)
        card = page.locator(".card", has_text="host2")
        expect(card).to_contain_text("ready")
        expect(card.get_by_text("3400 of 3400")).to_be_hidden()
        card.locator("summary").first.click()
        expect(card.get_by_text("3400 of 3400")).to_be_visible()
        link = card.get_by_role("link", name="The page of host2")
        expect(link).to_have_attribute("href", re.compile(r"^http://127\.0\.0\.1:\d+/$"))
        card.locator("summary").first.click()
        stage.alive.discard(2)
        expect(card.get_by_text("3400 of 3400")).to_be_visible(timeout=10_000)
        expect(card.locator(".brief")).to_contain_text("last word")
        page.close()


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (PHONE, "dark")])
def test_each_vm_that_falls_has_a_row_of_steps(
    tmp_path: Path, browser: Browser, size: dict[str, int], scheme: str
) -> None:
    with Stage(tmp_path, ("host1", "host2", "host3"), owner=1, db=2, well=True) as stage:
        page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        complaints = Complaints(page, stage.url)
        page.goto(stage.url)
        heading = page.get_by_role("heading", level=2).first
        expect(heading).to_have_text("All 2 VMs are up and healthy", timeout=10_000)
        expect(page.locator("#falls")).to_be_hidden()
        stage.alive.discard(2)
        rows = page.locator("#falls > li")
        expect(rows).to_have_count(1, timeout=20_000)
        expect(rows.locator("h3")).to_have_text("What happens now with db")
        steps = rows.locator(".steps li")
        expect(steps.nth(0)).to_contain_text("suspected: host2 is silent")
        expect(page.locator("#falls .steps li.now b")).to_have_text("proven dead")
        stage.proven_off(2, by=1)
        expect(steps.nth(1)).to_contain_text("proven off by host1")
        expect(page.locator("#falls .steps li.now b")).to_have_text("started", timeout=10_000)
        keep(page, f"page-db-falls-{size['width']}-{scheme}")
        assert Axe().run(page).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        stage.db_runs_on(3)
        expect(rows.locator("h3")).to_contain_text("db answers again, ", timeout=20_000)
        expect(page.locator("#falls .steps li.done")).to_have_count(5)
        moved = page.locator("#events li", has_text="db: EngineDown → EngineUp")
        expect(moved).to_have_count(1, timeout=20_000)
        expect(page.locator("#engine-since")).to_contain_text("HostedEngine: up since")
        # Who opens the page now knows it by the events alone.
        page.reload()
        expect(rows.locator("h3")).to_contain_text("db answers again, ", timeout=20_000)
        keep(page, f"page-db-is-back-{size['width']}-{scheme}")
        page.close()
        assert complaints.found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_a_failover_is_a_row_of_steps_and_a_dead_host_looks_dead(
    tmp_path: Path, browser: Browser, size: dict[str, int], scheme: str
) -> None:
    with Stage(tmp_path, ("host1", "host2", "host3"), owner=2, well=True) as stage:
        page = browser.new_page(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        complaints = Complaints(page, stage.url)
        page.goto(stage.url)
        heading = page.get_by_role("heading", level=2).first
        expect(heading).to_contain_text("up and healthy on host2", timeout=10_000)
        expect(page.locator("#falls")).to_be_hidden()
        stage.alive.discard(2)
        steps = page.locator("#falls .steps li")
        expect(steps).to_have_count(5, timeout=20_000)
        expect(page.locator("#falls h3")).to_have_text("What happens now")
        expect(steps.nth(0)).to_contain_text("suspected: host2 is silent")
        expect(steps.nth(1)).to_contain_text("waiting, for")
        stage.proven_off(2, by=1)
        expect(steps.nth(1)).to_contain_text("proven off by host1")
        expect(steps.nth(2)).to_contain_text("lease freed")
        expect(page.locator("#falls .steps li.now b")).to_have_text("started")
        expect(heading).to_contain_text("HostedEngine is down", timeout=10_000)
        dead = page.locator(".card.dead", has_text="host2")
        expect(dead.locator(".pill")).to_have_text("OFF")
        expect(dead.locator(".brief")).to_contain_text("power off, proven by host1 at ")
        expect(dead.locator(".brief")).to_contain_text("last word")
        banner = page.locator("#banners .critical", has_text="host2 is dead")
        expect(banner).not_to_contain_text("Nothing proves")
        link = banner.get_by_role("link", name="What to do: host2 is dead")
        expect(link).to_have_attribute("href", "runbook.html#dead")
        keep(page, f"page-failover-{size['width']}-{scheme}")
        assert Axe().run(page).response["violations"] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
        assert page.evaluate(TIMES_APART)
        stage.takes_over(1, "EngineStarting")
        expect(page.locator("#falls .steps li.now b")).to_have_text("it answers", timeout=10_000)
        stage.takes_over(1, "EngineUp")
        expect(page.locator("#falls h3")).to_contain_text("It answers again, ", timeout=10_000)
        expect(page.locator("#falls .steps li.done")).to_have_count(5)
        keep(page, f"page-after-failover-{size['width']}-{scheme}")
        assert Axe().run(page).response["violations"] == []
        page.close()
        assert complaints.found == []


def test_in_global_maintenance_nothing_is_promised(tmp_path: Path, browser: Browser) -> None:
    with Stage(tmp_path, ("host1", "host2"), well=True) as stage:
        page = browser.new_page()
        page.goto(stage.url)
        expect(page.locator("#engine-bound")).to_contain_text("would answer again", timeout=10_000)
        stage.wait(stage.brokers[0].keeper.set("global", Maintenance(True, "a switch"), "root"))
        expect(page.locator("#engine-bound")).to_have_text(
            "Global maintenance: were its host to die now, nothing would start it again.",
            timeout=10_000,
        )
        expect(page.get_by_text("would answer again")).to_have_count(0)
        page.close()


def test_a_vm_that_boots_boots(tmp_path: Path, browser: Browser) -> None:
    with Stage(tmp_path, ("host1", "host2"), well=True) as stage:
        stage.boots()
        page = browser.new_page()
        page.goto(stage.url)
        heading = page.get_by_role("heading", level=2).first
        expect(heading).to_contain_text("HostedEngine boots on host1", timeout=10_000)
        stage.health = Health.GOOD
        expect(heading).to_contain_text("is up and healthy", timeout=10_000)
        page.close()


def test_who_has_logged_in_once_orders_for_any_host(tmp_path: Path, browser: Browser) -> None:
    with Stage(tmp_path, ("host1", "host2"), owner=2, well=True) as stage:
        page = browser.new_page()
        page.goto(stage.url)
        heading = page.get_by_role("heading", level=2).first
        expect(heading).to_contain_text("up and healthy on host2", timeout=10_000)
        with_token(page)
        # The VM is moved by its own host, whoever's page this is.
        page.get_by_role("button", name="Migrate").click()
        page.get_by_label("To", exact=True).select_option("1")
        page.get_by_role("button", name="Do it").click()
        expect(page.locator("#answer")).to_contain_text("waiting")
        order = stage.call(lambda: stage.brokers[1].orders.pending(0.0))
        assert order is not None and (order.kind, order.target) == (OrderKind.MIGRATE, 1)
        page.get_by_label("Host", exact=True).select_option("2")
        page.get_by_role("button", name="Maintenance of host2").click()
        page.get_by_label("Reason").fill("a new disk")
        page.get_by_role("button", name="Do it").click()
        expect(page.locator("#answer")).to_have_text("local maintenance is set.")
        mode = stage.brokers[1].modes.local_countdown.mode
        assert mode is not None and (mode.owner, mode.reason) == ("api-token@host1", "a new disk")
        page.close()


def test_plots_and_strips_have_times_and_marks(page: Page, stage: Stage) -> None:
    stage.alive.discard(3)
    expect(page.locator("#plots .mark.critical").first).to_be_attached(timeout=40_000)
    expect(page.locator("#plots-axis span")).to_have_count(5)
    expect(page.locator("#plots-axis span").last).to_have_text("now")
    expect(page.locator("#strips li").nth(1)).to_contain_text("30 days")
    strip = page.locator("#strips svg").first
    expect(strip).to_have_attribute("aria-label", re.compile("24 hours: Available .* %"))


def test_each_trouble_has_its_part_of_the_runbook(page: Page, stage: Stage) -> None:
    script = (FOLDER / "dashboard.js").read_text()
    keys = set(re.findall(r"yield \[[`\"]([a-z0-9]+)", script)) - {"intent"}
    assert len(keys) > 20
    page.goto(f"{stage.url}runbook.html")
    there = set(page.evaluate("[...document.querySelectorAll('section')].map((each) => each.id)"))
    assert keys == there
    assert Axe().run(page).response["violations"] == []
