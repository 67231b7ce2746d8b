# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is sent, to whom, how often, and in what order: the parts of notifications that only
compute."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.notify_section import NotifyRulesSection
from broker.config.patterns import matcher
from broker.config.secrets import load_notify_secrets
from broker.config.sections import Config
from broker.events.detector import (
    AGENT_SILENT_S,
    ENGINE_UNKNOWN_AT_FIRST_S,
    ENGINE_UNKNOWN_S,
    PATH_UNPROVEN_S,
    PEER_SILENT_S,
    EventDetector,
    HostGlance,
)
from broker.events.notice import (
    DETAIL_CHARS_MAX,
    FACT_CHARS_MAX,
    FACTS_MAX,
    SUBJECT_CHARS_MAX,
    Notice,
)
from broker.notify.backlog import Backlog
from broker.notify.folding import Folding
from broker.notify.limits import Limits
from broker.notify.message import StampedNotice
from broker.notify.rules import Rules
from broker.peers.vm_place import VmPlace
from broker.wire.exchange import BegunReason, Report
from broker.wire.kinds import SEVERITY, Kind, Severity
from broker.wire.status import FencePathOnWire, ReasonOnWire
from scoring.observation import FenceStep

NOON = 1_800_000_000.0
DOCS = Path(__file__).parents[2] / "docs"


def notice(detail: str = "it happened", kind: Kind = Kind.PEER_SILENT) -> Notice:
    return Notice(kind, "host1", detail)


def stamped(
    detail: str = "it happened", kind: Kind = Kind.PEER_SILENT, at: float = 0.0
) -> StampedNotice:
    return StampedNotice(notice(detail, kind), at)


# --- Notice --------------------------------------------------------------------------------


@given(st.text(), st.text(), st.dictionaries(st.text(), st.text() | st.none() | st.floats()))
def test_a_notice_holds_printable_lines_whatever_it_is_made_from(
    subject: str, detail: str, facts: dict[str, str | float | None]
) -> None:
    made = Notice(Kind.TEST, subject * 50, detail * 200, facts)
    texts = [made.subject, made.detail, *made.facts]
    texts += [value for value in made.facts.values() if isinstance(value, str)]
    assert all(text.isprintable() for text in texts)
    assert len(made.subject) <= SUBJECT_CHARS_MAX
    assert len(made.detail) <= DETAIL_CHARS_MAX


def test_a_notice_is_bounded() -> None:
    made = Notice(Kind.TEST, "s", "d", {f"fact{n}": "x" * 10_000 for n in range(100)})
    assert len(made.facts) == FACTS_MAX
    assert {len(str(value)) for value in made.facts.values()} == {FACT_CHARS_MAX}


def test_a_host_name_cannot_start_a_header_or_turn_the_text_around() -> None:
    made = Notice(Kind.TEST, "host1\r\nBcc: all@example.org", "\u202egnp.exe\x1b[2J\u2028")
    assert made.subject == "host1  Bcc: all@example.org"
    assert made.detail == "?gnp.exe?[2J "


# --- rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "detail", "wanted"),
    [
        ("maintenance|start|stop|up|down", "EngineDown-EngineStart", True),
        ("maintenance|start|stop|up|down", "ReinitializeFSM-UnknownLocalVmState", False),
        ("LOCALMAINTENANCE", "EngineUp-LocalMaintenance", True),
        ("-EngineUp$", "EngineStarting-EngineUp", True),
        ("-EngineUp$", "EngineStarting-EngineUpBadHealth", False),
        ("-engineup$", "EngineStarting-EngineUp", True),
        (".*", "", True),
        ("", "anything", False),
        ("a.c", "xABCx", True),
        ("a|", "zzz", True),
    ],
)
def test_a_rule_is_searched_for_whatever_the_case(pattern: str, detail: str, wanted: bool) -> None:
    rules = Rules({Kind.STATE_TRANSITION: pattern})
    assert rules.want(notice(detail, Kind.STATE_TRANSITION)) is wanted
    assert rules.want(notice(detail, Kind.FAILOVER_DONE)), "no rule of its own"


def test_a_rule_that_takes_for_ever_is_given_up_and_lets_everything_through() -> None:
    rules = Rules({Kind.STATE_TRANSITION: "^(x|xx)+$"})
    assert rules.want(notice("x" * 60 + "!", Kind.STATE_TRANSITION))
    assert "state-transition" in rules.problem
    assert rules.want(notice("no x at all", Kind.STATE_TRANSITION))


def test_a_rule_that_is_no_regular_expression_is_told() -> None:
    with pytest.raises(ValueError, match="missing"):
        matcher("(up")


def test_every_kind_has_its_rule_and_its_line_in_the_documents() -> None:
    keys = {field.encode_name for field in msgspec.structs.fields(NotifyRulesSection)}
    assert keys == {kind.value for kind in Kind} - {Kind.TEST}
    table = re.findall(
        r"^\| `([a-z0-9-]+)` \| (info|warning|critical) \|",
        (DOCS / "notifications.md").read_text(),
        re.MULTILINE,
    )
    assert dict(table) == {kind.value: severity.word for kind, severity in SEVERITY.items()}


# --- folding -------------------------------------------------------------------------------


def test_the_same_again_is_held_back_and_told_with_its_number_when_the_time_is_up() -> None:
    folding = Folding(10)
    assert folding.take(stamped(), 0.0) is not None
    assert folding.take(stamped(at=1.0), 1.0) is None
    assert folding.take(stamped(at=2.0), 2.0) is None
    assert folding.due(59.9, 60.0) == []
    (again,) = folding.due(60.0, 60.0)
    assert (again.repeats, again.at_epoch_s) == (2, 2.0)
    # Nothing came up meanwhile: forgotten, and the next one goes out at once.
    assert folding.due(120.0, 60.0) == []
    assert folding.take(stamped(), 120.0) is not None
    assert folding.held == 2


def test_another_subject_or_detail_is_not_the_same() -> None:
    folding = Folding(10)
    assert folding.take(stamped("EngineUp-EngineDown"), 0.0) is not None
    assert folding.take(stamped("EngineDown-EngineUp"), 0.0) is not None


def test_the_last_word_on_a_thing_is_never_swallowed() -> None:
    """Back and forth within the time: the notice that is sent last is the present state."""
    folding, out = Folding(10), []
    for at, detail in enumerate(["silent", "back", "silent"]):
        fresh = folding.take(stamped(detail), float(at))
        out += [fresh.notice.detail] if fresh else []
    out += [each.notice.detail for each in folding.due(100.0, 60.0)]
    assert out == ["silent", "back", "silent"]


def test_folding_remembers_a_bounded_number() -> None:
    folding = Folding(3)
    for n in range(100):
        assert folding.take(stamped(str(n)), 0.0) is not None
    assert folding.take(stamped("99"), 0.0) is None
    assert folding.take(stamped("0"), 0.0) is not None
    assert folding.next_s(60.0) == 60.0


# --- backlog -------------------------------------------------------------------------------

SMALL = Limits(queue=6, digest_from=4, burst=2, window_s=60.0)


def test_few_go_out_one_by_one_and_many_as_a_digest() -> None:
    backlog = Backlog(SMALL)
    for n in range(3):
        backlog.put(stamped(str(n)))
    assert [len(backlog.take()[0]) for _ in range(3)] == [1, 1, 1]
    for n in range(4):
        backlog.put(stamped(str(n)))
    assert len(backlog.take()[0]) == 4


def test_a_full_backlog_drops_the_oldest_of_the_least_severe_and_says_how_many() -> None:
    backlog = Backlog(SMALL)
    backlog.put(stamped("first", Kind.FAILOVER_STARTED))
    for n in range(20):
        backlog.put(stamped(str(n), Kind.STATE_TRANSITION))
    taken, lost = backlog.take()
    assert [each.notice.detail for each in taken] == ["first", "15", "16", "17", "18", "19"]
    assert (lost, backlog.dropped, len(backlog)) == (15, 15, 0)


def test_only_so_many_messages_go_out_within_the_window() -> None:
    backlog = Backlog(SMALL)
    backlog.sent(10.0)
    assert backlog.not_before_s() < 0
    backlog.sent(20.0)
    assert backlog.not_before_s() == 70.0
    backlog.sent(70.0)
    assert backlog.not_before_s() == 80.0


# --- detector -------------------------------------------------------------------------------


class Ears(list[Notice]):
    """Whoever is told."""

    def kinds(self) -> list[Kind]:
        return [each.kind for each in self]


def glance(name: str, **changed: object) -> HostGlance:
    given = {"silent_s": None, "lived": True, "stopped": False, "up": False, "known_s": 0.0}
    return HostGlance(name, **{**given, **changed})  # type: ignore[arg-type]


def report(state: str, *begun: tuple[str, str], beat: int = 1) -> Report:
    return Report(
        score=3400,
        state=state,
        penalties=(),
        reasons=(ReasonOnWire("starting", "because"),),
        last_ran=0,
        begun=tuple(BegunReason(beat, code, text) for code, text in begun),
    )


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def detector(ears: Ears) -> EventDetector:
    return EventDetector(ears.append, 1, "host1")


def test_a_transition_is_told_as_old_and_new_state(detector: EventDetector, ears: Ears) -> None:
    detector.reported(report("EngineDown"), 1.0, NOON)
    detector.reported(report("EngineDown"), 2.0, NOON)
    assert not ears
    detector.reported(report("EngineStart"), 3.0, NOON)
    assert [(each.kind, each.detail) for each in ears] == [
        (Kind.STATE_TRANSITION, "EngineDown-EngineStart")
    ]
    assert ears[0].facts["reason"] == "because"


@pytest.mark.parametrize("silent_s", [3.0, None], ids=["silent", "proven dead, not silent yet"])
def test_a_failover_is_told_with_its_duration(
    detector: EventDetector, ears: Ears, silent_s: float | None
) -> None:
    detector.reported(report("EngineDown"), 0.0, NOON)
    other = glance("host2", up=True, known_s=100.0)
    detector.look({1: glance("host1"), 2: other}, None, 100.5)
    other = glance("host2", up=True, known_s=100.0, silent_s=silent_s)
    detector.look({1: glance("host1"), 2: other}, None, 103.0)
    detector.reported(report("EngineStart"), 104.0, NOON)
    detector.look({1: glance("host1"), 2: other}, None, 104.5)
    detector.reported(report("EngineStarting"), 105.0, NOON)
    detector.look({1: glance("host1", up=True, known_s=106.0), 2: other}, None, 106.0)
    detector.reported(report("EngineUp"), 112.5, NOON)
    begun, done = (each for each in ears if each.kind is not Kind.STATE_TRANSITION)
    assert begun.kind is Kind.FAILOVER_STARTED
    assert (begun.facts["from"], begun.facts["to"], begun.facts["away_s"]) == ("host2", "host1", 4)
    assert (done.kind, done.facts["duration_s"]) == (Kind.FAILOVER_DONE, 12.5)


def test_a_failover_that_another_host_ended_is_told_by_that_one(
    detector: EventDetector, ears: Ears
) -> None:
    detector.reported(report("EngineDown"), 0.0, NOON)
    detector.look({1: glance("host1"), 2: glance("host2", up=True, known_s=1.0)}, None, 1.0)
    detector.look({1: glance("host1"), 2: glance("host2")}, None, 2.0)
    detector.reported(report("EngineStart"), 3.0, NOON)
    detector.reported(report("EngineDown"), 4.0, NOON)
    detector.look({1: glance("host1"), 2: glance("host2", up=True, known_s=9.0)}, None, 9.0)
    detector.reported(report("EngineUp"), 90.0, NOON)
    assert Kind.FAILOVER_STARTED in ears.kinds()
    assert Kind.FAILOVER_DONE not in ears.kinds()


def test_the_first_start_and_a_migration_are_no_failover(
    detector: EventDetector, ears: Ears
) -> None:
    for at, state in enumerate(["EngineDown", "EngineStart", "EngineStarting", "EngineUp"]):
        detector.reported(report(state), float(at), NOON)
    assert set(ears.kinds()) == {Kind.STATE_TRANSITION}


def test_reasons_with_a_kind_of_their_own_are_told_once(
    detector: EventDetector, ears: Ears
) -> None:
    first = report("EngineDown", ("fence-forbidden", "host 2 hangs"), beat=7)
    detector.reported(first, 1.0, NOON)
    detector.reported(first, 2.0, NOON)
    detector.reported(report("EngineDown", ("vm-unprotected", "no lease"), beat=8), 3.0, NOON)
    detector.reported(report("EngineDown", ("start-failed", "no bridge"), beat=9), 4.0, NOON)
    assert ears.kinds() == [Kind.FENCE_HELD_BACK, Kind.VM_UNPROTECTED, Kind.START_FAILED]
    assert ears[0].detail == "host 2 hangs"


def test_a_host_that_could_not_start_the_vm_is_told_when_it_begins_and_ends(
    detector: EventDetector, ears: Ears
) -> None:
    detector.can_start("")
    detector.can_start("no bridge")
    detector.can_start("no bridge; no disk")
    detector.can_start("")
    detector.can_start("")
    assert ears.kinds() == [Kind.CANNOT_START, Kind.CAN_START]
    assert ears[0].facts == {"problem": "no bridge"}
    assert ears[0].detail.endswith("could not start the engine, its score is 0: no bridge")


@pytest.mark.parametrize("step", sorted(set(FenceStep) - {FenceStep.FREEING}))
def test_each_step_of_a_fencing_is_told_with_its_evidence(
    detector: EventDetector, ears: Ears, step: FenceStep
) -> None:
    detector.fenced(step, 2, "", True, "e" * FACT_CHARS_MAX)
    (made,) = ears
    assert made.kind.value.startswith("fence-")
    assert made.detail.startswith("host 2 ")
    assert made.facts["evidence"] == "e" * FACT_CHARS_MAX


def test_a_peer_that_is_silent_long_enough_and_comes_back(
    detector: EventDetector, ears: Ears
) -> None:
    here = {1: glance("host1")}
    detector.look({**here, 2: glance("host2", silent_s=PEER_SILENT_S - 1)}, None, 20.0)
    assert not ears
    for now_s in (21.0, 22.0):
        detector.look({**here, 2: glance("host2", silent_s=now_s - 11.0)}, None, now_s)
    detector.look({**here, 2: glance("host2")}, None, 31.0)
    assert ears.kinds() == [Kind.PEER_SILENT, Kind.PEER_BACK]
    assert ears[1].facts["away_s"] == 20.0


UNKNOWN = VmPlace(None, known="host2 wrote nothing for 17 s", likely=2)


@pytest.mark.parametrize(
    ("then", "detail"),
    [
        (VmPlace(True, 2, True), "it is known again where the engine is: it is up on host2"),
        (VmPlace(False), "it is known again where the engine is: it is down"),
    ],
)
def test_an_engine_of_which_nothing_is_known_is_told_and_its_end_too(
    detector: EventDetector, ears: Ears, then: VmPlace, detail: str
) -> None:
    detector.place(VmPlace(True, 2, True), "host2", False, 0.0)
    for now_s in (1.0, 15.9, 16.0, 40.0):
        detector.place(UNKNOWN, "", False, now_s)
        assert len(ears) == (now_s >= 1.0 + ENGINE_UNKNOWN_S)
    assert ears[0].severity is Severity.CRITICAL
    assert ears[0].detail.endswith("is not known: host2 wrote nothing for 17 s")
    assert ears[0].facts["likely"] == 2
    detector.place(then, "host2", False, 41.0)
    detector.place(then, "host2", False, 42.0)
    assert ears.kinds() == [Kind.ENGINE_UNKNOWN, Kind.ENGINE_KNOWN]
    assert (ears[1].detail, ears[1].facts["unknown_s"]) == (detail, 40.0)


def test_a_broker_that_was_just_started_has_time_to_find_the_others(
    detector: EventDetector, ears: Ears
) -> None:
    for now_s in (1.0, 60.0, 120.9):
        detector.place(UNKNOWN, "", False, now_s)
    assert not ears
    detector.place(UNKNOWN, "", False, 1.0 + ENGINE_UNKNOWN_AT_FIRST_S)
    assert ears.kinds() == [Kind.ENGINE_UNKNOWN]


def test_what_every_takeover_passes_through_is_no_news(detector: EventDetector, ears: Ears) -> None:
    for now_s in range(10):
        detector.place(UNKNOWN, "", False, now_s)
    detector.place(VmPlace(True, 1, True), "host1", False, 10.0)
    assert not ears


def test_a_blind_host_keeps_to_itself_that_it_does_not_know(ears: Ears) -> None:
    seen: list[Notice] = []
    blind = EventDetector(ears.append, 1, "host1", seen.append)
    blind.place(VmPlace(False), "", False, 0.0)
    for now_s in (1.0, 20.0):
        blind.place(UNKNOWN, "", True, now_s)
    assert not ears and [each.kind for each in seen] == [Kind.ENGINE_UNKNOWN]


def test_a_blind_host_tells_nothing_of_its_peers(detector: EventDetector, ears: Ears) -> None:
    """Who was silent before does not come back by it."""
    here = {1: glance("host1")}
    detector.look({**here, 2: glance("host2", silent_s=20.0)}, None, 20.0)
    for now_s in (30.0, 60.0):
        detector.look({**here, 2: glance("host2", is_known=False)}, None, now_s)
    detector.look({**here, 2: glance("host2", silent_s=50.0)}, None, 70.0)
    assert ears.kinds() == [Kind.PEER_SILENT]


def test_a_peer_that_was_stopped_is_another_thing(detector: EventDetector, ears: Ears) -> None:
    detector.look({1: glance("host1"), 2: glance("host2", silent_s=60.0, stopped=True)}, None, 1.0)
    assert ears.kinds() == [Kind.PEER_STOPPED]
    assert ears[0].severity is Severity.INFO


def test_a_peer_that_never_lived_is_no_news(detector: EventDetector, ears: Ears) -> None:
    detector.look({1: glance("host1"), 2: glance("host2", silent_s=9e9, lived=False)}, None, 1.0)
    assert not ears


def test_what_all_see_is_told_by_the_lowest_live_host(ears: Ears) -> None:
    third = EventDetector(ears.append, 3, "host3")
    hosts = {1: glance("host1"), 2: glance("host2", silent_s=30.0), 3: glance("host3")}
    third.look(hosts, None, 30.0)
    third.maintenance_ends_soon("global", 600.0, "")
    assert not ears
    third.maintenance_ends_soon("local", 600.0, "")
    third.look({**hosts, 1: glance("host1", silent_s=11.0)}, None, 40.0)
    third.maintenance_ends_soon("global", 500.0, "new switch")
    assert [(each.kind, each.subject) for each in ears] == [
        (Kind.MAINTENANCE_ENDS_SOON, "local maintenance"),
        (Kind.PEER_SILENT, "host1"),
        (Kind.MAINTENANCE_ENDS_SOON, "global maintenance"),
    ]


def test_a_silent_agent_is_told_after_a_while(detector: EventDetector, ears: Ears) -> None:
    # A broker that has just started has not heard of its agent yet.
    detector.look({}, float("inf"), 100.0)
    detector.look({}, float("inf"), 100.0 + AGENT_SILENT_S - 1)
    assert not ears
    detector.look({}, float("inf"), 100.0 + AGENT_SILENT_S)
    detector.look({}, float("inf"), 101.0 + AGENT_SILENT_S)
    detector.look({}, None, 200.0)
    assert ears.kinds() == [Kind.AGENT_SILENT, Kind.AGENT_BACK]


def test_a_fence_path_that_is_not_proven_for_a_day(detector: EventDetector, ears: Ears) -> None:
    def looks(now_s: float, wall_s: float, **paths: FencePathOnWire) -> None:
        by_host = {int(name.removeprefix("host")): path for name, path in paths.items()}
        made = msgspec.structs.replace(report("EngineDown"), fence_paths=by_host)
        detector.reported(made, now_s, wall_s)

    never = FencePathOnWire(False, None, NOON, 0.1, "the login is refused")
    once = FencePathOnWire(False, NOON, NOON, 0.1, "timeout")
    looks(0.0, NOON, host1=never, host2=once)
    looks(PATH_UNPROVEN_S - 1, NOON + PATH_UNPROVEN_S - 1, host1=never, host2=once)
    assert not ears
    for later_s in (0.0, 1.0):
        now_s = PATH_UNPROVEN_S + later_s
        looks(now_s, NOON + now_s, host1=never, host2=once)
    assert ears.kinds() == [Kind.FENCE_PATH_UNPROVEN] * 2
    assert [each.facts["proven_age_s"] for each in ears] == [None, PATH_UNPROVEN_S]
    wall_s = NOON + PATH_UNPROVEN_S + 2
    looks(PATH_UNPROVEN_S + 2, wall_s, host1=never, host2=FencePathOnWire(True, wall_s, wall_s, 1))
    assert ears.kinds()[2:] == [Kind.FENCE_PATH_PROVEN]


def test_half_of_the_lease_budget(detector: EventDetector, ears: Ears) -> None:
    for left_s in (None, 80.0, 41.0, 39.0, 20.0, None, 45.0, 80.0):
        detector.budget(left_s, 80.0)
    assert ears.kinds() == [Kind.LEASE_BUDGET_LOW, Kind.LEASE_BUDGET_GOOD]
    assert ears[0].facts == {"left_s": 39.0, "of_s": 80.0}
    assert "ends the VMs here" in ears[0].detail
    detector.budget(20.0, 80.0, runs_vms=False)
    assert "gives this host's id up" in ears[2].detail


# --- configuration -------------------------------------------------------------------------

GOOD = '[host]\nid = 1\n[storage]\nwhiteboard = "/w"\nleases = "/l"\n'


def config(tmp_path: Path, text: str, secrets: str | None = None, mode: int = 0o600) -> Config:
    if secrets is not None:
        (tmp_path / "secrets.toml").write_text(secrets)
        (tmp_path / "secrets.toml").chmod(mode)
        text += f'[daemon]\nsecrets = "{tmp_path}/secrets.toml"\n'
    path = tmp_path / "ha-agent.toml"
    path.write_text(GOOD + text)
    return load(str(path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[notify.rules]\nfailover-done = "("\n', "notify.rules.failover-done"),
        ('[notify.rules]\nfailover-don = "x"\n', "did you mean failover-done"),
        ('[notify.smtp]\nserver = "a b"\n', "notify.smtp.server"),
        ('[notify.smtp]\nserver = "a"\nrecipients = []\n', "notify.smtp.recipients"),
        ('[notify.smtp]\nrecipients = ["a@b\\nBcc: c@d"]\n', "notify.smtp.recipients"),
        ('[notify.smtp]\nsender = "A <a@b>"\n', "notify.smtp.sender"),
        ('[notify.smtp]\npassword = "x"\n', "unknown key notify.smtp.password"),
        (
            '[notify.smtp]\nserver = "mail"\nsecurity = "none"\nusername = "u"\n',
            "notify.smtp.security",
        ),
        ('[notify.webhook]\nurl = "ftp://x"\n', "notify.webhook.url"),
        ('[notify.webhook]\nurl = "https://u:p@x/"\n', "notify.webhook.url"),
        ('[notify.webhook]\nurl = "https://x/\\r\\nX: y"\n', "notify.webhook.url"),
        ('[notify.command]\nargv = ["mail"]\n', "notify.command.argv"),
        ('[notify.command]\nargv = ["/a=b"]\n', "notify.command.argv"),
        ('[notify.command]\nargv = ["/a", "\\u0000"]\n', "notify.command.argv"),
        ("[notify.command]\ntimeout = 61\n", "notify.command.timeout"),
    ],
)
def test_what_does_not_fit_names_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(tmp_path, text)
    assert message in str(error.value)
    assert "u:p@" not in str(error.value)


WEBHOOK = '[notify.webhook]\nurl = "http://127.0.0.1/x"\n'
LOGIN = '[notify.smtp]\nserver = "mail"\nusername = "u"\n'
KEY = "0123456789abcdef"


def test_secrets_are_read_only_where_they_are_needed(tmp_path: Path) -> None:
    assert not load_notify_secrets(config(tmp_path, "")).webhook_key
    given = config(tmp_path, WEBHOOK, f'[notify]\nwebhook-key = "{KEY}"\n')
    assert load_notify_secrets(given).webhook_key == KEY
    given = config(tmp_path, LOGIN, '[notify]\nsmtp-password = "geheim"\n')
    assert load_notify_secrets(given).smtp_password == "geheim"


@pytest.mark.parametrize(
    ("text", "secrets", "mode", "message"),
    [
        (WEBHOOK, f'[notify]\nwebhook-key = "{KEY}"\n', 0o644, "chmod 0600"),
        (WEBHOOK, "", 0o600, "notify.webhook-key"),
        (WEBHOOK, f'[notify]\nwebhook-key = "{KEY[:-1]}"\n', 0o600, "notify.webhook-key"),
        (WEBHOOK, f'[notify]\nwebhook = "{KEY}"\n', 0o600, "is not the TOML"),
        (LOGIN, "[notify]\nsmtp-password = 12345678\n", 0o600, "is not the TOML"),
        (LOGIN, "", 0o600, "notify.smtp-password"),
    ],
)
def test_secrets_that_are_amiss_are_told_and_not_quoted(
    tmp_path: Path, text: str, secrets: str, mode: int, message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_notify_secrets(config(tmp_path, text, secrets, mode))
    assert message in str(error.value)
    assert KEY[:-1] not in str(error.value)
    assert "12345678" not in str(error.value)


def test_a_host_on_other_storage_is_told_once_and_when_that_ends(
    detector: EventDetector, ears: Ears
) -> None:
    names = {1: "host1", 2: "host2"}
    text = "says that it wrote 815 to its slot, which is at 700 here"
    detector.storage_of_others(names, {})
    for _ in range(2):
        detector.storage_of_others(names, {2: text, 7: text})
    assert [(each.kind, each.subject) for each in ears] == [
        (Kind.OTHER_STORAGE, "host2"),
        (Kind.OTHER_STORAGE, "host 7"),
    ]
    assert ears[0].detail == f"host2 does not see the same storage as host1: it {text}"
    detector.storage_of_others({}, {7: text})
    assert (ears[2].kind, ears[2].facts) == (
        Kind.SAME_STORAGE,
        {"host_id": 2, "host": "host2", "seen_by": "host1"},
    )


def test_slots_that_do_not_count_are_told_once_however_many_they_are(
    detector: EventDetector, ears: Ears
) -> None:
    names = {77: "evil"}
    detector.slots_not_counted(names, {})
    detector.slots_not_counted(names, {77: "it is forged"})
    for host in range(100, 200):
        detector.slots_not_counted(names, {77: "it is forged", host: "so is this"})
    assert [(each.kind, each.subject) for each in ears] == [(Kind.SLOT_NOT_COUNTED, "evil")]
    assert ears[0].detail == "what slot 77 (evil) says does not count: it is forged"
    detector.slots_not_counted(names, {})
    detector.slots_not_counted(names, {3: "so is this", 4: "and this"})
    assert ears[1].detail == "what slot 3 (host 3) says does not count (and 1 more): so is this"
