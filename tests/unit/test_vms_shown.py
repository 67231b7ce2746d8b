# SPDX-License-Identifier: LGPL-2.1-or-later
"""What people see of several VMs: where each is, in a word and a sentence, and the whole text."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from agent.commands import liveliness
from agent.commands.why_vm import explain, found
from agent.status.read import read
from agent.status.text import as_text, what_is_wrong
from agent.terminal.errors import CommandError
from broker.peers.vm_place import OwnReads
from broker.peers.vm_places import vms_seen
from broker.status.bound_now import _held_back
from broker.status.vms import entries, size
from broker.wire.status import Bound, HostStatus, PenaltyOnWire, ReasonOnWire, Status
from broker.wire.vms import VmEntry, VmWord
from scoring.hosts.liveness import Liveness
from scoring.vm.plan import Plan
from scoring.vm_facts import EngineStatus, Health, VmStatus, Want
from tests.fakes import vms
from tests.fakes.statuses import BOUND
from tests.fakes.vms import DB, ENGINE, GIB, NOW_S, SSO, WEB, WIKI, WORDS, down, known, up, word


def entry(number: int, words: object = WORDS, **changed: object) -> VmEntry:
    found = entries(known(words, **changed), NOW_S)  # type: ignore[arg-type]
    return next(each for each in found if each.number == number)


# --- the text ------------------------------------------------------------------------------


def test_the_text_of_five_vms_of_which_one_boots() -> None:
    assert as_text(vms.status()).splitlines() == [
        "lab: 5 of 5 VMs are up, 4 healthy; web boots on host1 for 9 s",
        "wrong: 1 thing:",
        "  if host2 dies, db has no place: 6 GiB short (needs 8, host3 has 2)",
        "next: if host1 dies now, the engine answers in about 13 s: detect 3.5 + prove 1.2"
        " + lease 0.7 + boot 7.8 (proof by its fence device)",
        "",
        "  VM      PRIO  STATE    ON     SINCE  WHY",
        "  engine  100   up/good  host1  3 d",
        "  db      90    up/good  host2  3 d",
        "  sso     80    up/good  host2  3 d",
        "  web     50    booting  host1  9 s    sso is healthy",
        "  wiki    10    up/good  host3  2 h+",
        "",
        "   ID  HOST   VMS  FREE    SCORE  AGE  WHY",
        "*  1   host1  2    1 GiB   3400   0 s",
        "   2   host2  2    10 GiB  3400   0 s",
        "   3   host3  1    2 GiB   3050   0 s  load -350",
    ]


def test_the_text_while_a_host_s_vms_are_missing() -> None:
    words = {**WORDS, 1: {ENGINE: up(), WEB: up()}, 2: {}}
    text = as_text(vms.status(words)).splitlines()
    assert text[:6] == [
        "lab: 3 of 5 VMs are up, 3 healthy; db is DOWN for 3 d 0 h; sso is DOWN for 3 d 0 h",
        "wrong: 4 things:",
        "  db is down (ha-agent why db)",
        "  sso is down (ha-agent why sso)",
        "  if host1 dies, db has no place: 2 GiB short (needs 8, host2 has 6)",
        "  if host2 dies, db has no place: 6 GiB short (needs 8, host3 has 2)",
    ]
    assert text[6:8] == ["next: db: host2 is to start it", "next: sso: host2 is to start it"]


def test_in_global_maintenance_no_vm_is_said_to_be_started() -> None:
    text = as_text(vms.status({**WORDS, 2: {}}, global_maintenance=True))
    assert "is to start it (" not in text and "next: db" not in text
    assert "db is down (" not in text, "somebody wants it so"
    assert "next: nothing, until global maintenance ends" in text


def test_all_is_well_in_one_line() -> None:
    words = {**WORDS, 1: {ENGINE: up(), WEB: up()}}
    text = as_text(vms.status(words, n_plus_1=())).splitlines()
    assert text[:2] == ["lab: all 5 VMs are up and healthy", "nothing is wrong"]


def test_of_several_vms_the_last_line_says_which_one_it_is_about() -> None:
    reason = ReasonOnWire("engine-healthy", "the VM is up and healthy here")
    made = msgspec.structs.replace(vms.status(WORDS), reasons=(reason,))
    last = as_text(made).splitlines()[-1]
    assert last == "this host, about the engine: the VM is up and healthy here"


def test_an_engine_that_nobody_reaches_is_not_said_to_be_well() -> None:
    words = {**WORDS, 1: {ENGINE: up(), WEB: up()}}
    made = vms.status(words, n_plus_1=())
    made = msgspec.structs.replace(made, engine=msgspec.structs.replace(made.engine, reached=False))
    first = as_text(made, colour=True).splitlines()[0]
    assert "all 5 VMs are up, but the engine is NOT REACHED from outside" in first
    assert "\x1b[1;32m" not in first, "not green"


GONE = {"up": False, "healthy": False, "state": VmWord.WAITING, "host": None, "hostname": None}


@pytest.mark.parametrize(
    ("of_db", "code", "begins"),
    [
        ({}, 0, "OK - lab: all 5 VMs are up and healthy"),
        (GONE, 2, "CRITICAL - lab: 4 of 5 VMs are up, 4 healthy; db is DOWN"),
        ({**GONE, "want": "down", "state": VmWord.OFF}, 0, "OK - lab: all 4 VMs are up and"),
        ({"healthy": False}, 2, "CRITICAL - lab: 5 of 5 VMs are up, 4 healthy; db is not"),
        ({"healthy": False, "state": VmWord.BOOTING}, 1, "WARNING - lab: 5 of 5 VMs are up, 4"),
        ({**GONE, "up": None, "state": VmWord.UNKNOWN}, 3, "UNKNOWN - lab: 4 of 5 VMs are up"),
    ],
)
def test_the_plugin_of_nagios_takes_the_worst_of_several_vms(
    of_db: dict[str, object],
    code: int,
    begins: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A VM beside the engine that was down was a WARNING, behind "the engine is up and healthy"."""
    words = {**WORDS, 1: {ENGINE: up(), WEB: up()}}
    made = vms.status(words, n_plus_1=())
    changed = (msgspec.structs.replace(vm, **of_db) if vm.number == DB else vm for vm in made.vms)
    made = msgspec.structs.replace(made, vms=tuple(changed))
    monkeypatch.setattr(liveliness, "ask", lambda *_: made)
    assert liveliness.as_plugin(lambda: "socket") == code
    assert capsys.readouterr().out.startswith(begins)


@pytest.mark.parametrize("name", ["vm-{}", "v" * 40 + "-{}", "m\u00fcn|chen-{}"])
def test_the_plugin_of_nagios_is_whole_where_nrpe_cuts_at_1024_bytes(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """50 VMs in trouble were one line of several kilobytes; cut, it had no figures any more."""
    made = vms.status({**WORDS, 1: {ENGINE: up(), WEB: up()}}, n_plus_1=())
    ill = msgspec.structs.replace(made.vms[-1], healthy=False, state=VmWord.UP, reason="it hangs")
    many = (
        msgspec.structs.replace(ill, number=number, name=name.format(number))
        for number in range(2, 52)
    )
    made = msgspec.structs.replace(made, vms=(made.vms[0], *many))
    monkeypatch.setattr(liveliness, "ask", lambda *_: made)
    assert liveliness.as_plugin(lambda: "socket") == liveliness.Plugin.CRITICAL
    said = capsys.readouterr().out
    assert len(said.encode()) < 1024
    first, *more = said.splitlines()
    assert len(first.encode()) <= liveliness.FIRST_BYTES_MAX
    text, bar, figures = first.partition(" | ")
    assert bar and figures.startswith("hosts_live=") and "|" not in text + "".join(more)
    assert more[0].startswith(name.format(2).replace("|", "/"))
    named = len(more) - 1
    assert more[-1] == f"and {len(what_is_wrong(made)) - named} more: ha-agent status"


def test_the_first_line_names_three_vms_and_counts_the_others() -> None:
    words = {1: {ENGINE: up(), WEB: up()}, 2: {}, 3: {WIKI: up(health=Health.BAD)}}
    ill = {number: up(health=Health.BAD) for number in (ENGINE, DB, SSO, WEB, WIKI)}
    first = as_text(vms.status({1: ill, 2: {}, 3: {}})).splitlines()[0]
    assert first.startswith("lab: all 5 VMs are up, none is healthy; engine is not healthy on host")
    assert first.endswith("; and 2 more")
    assert "wiki is not healthy on host3 for at least 2 h 0 min" in as_text(vms.status(words))


def test_what_is_wrong_with_a_vm_has_a_line() -> None:
    words = {**WORDS, 2: {DB: up(health=Health.BAD), SSO: up()}}
    status = vms.status(words)
    bad = msgspec.structs.replace(
        status,
        vms=tuple(
            msgspec.structs.replace(vm, refused="no disk")
            if vm.number == WIKI
            else msgspec.structs.replace(vm, up=None, state=VmWord.UNKNOWN, reason="host9 is gone")
            if vm.number == SSO
            else vm
            for vm in status.vms
        ),
    )
    text = as_text(bad)
    assert "  db is not healthy: the health page answers 503 (ha-agent why db)" in text
    assert "  wiki cannot be started on this host: no disk" in text
    assert "  whether sso is up is not known: host9 is gone (ha-agent why sso)" in text
    assert "sso is NOT KNOWN to run or not on host2" in text or "sso is NOT KNOWN" in text


def test_both_decoders_of_the_status_make_the_same_text() -> None:
    status = vms.status({**WORDS, 3: {WIKI: down(barred_until_s=NOW_S + 5)}})
    raw = msgspec.json.encode(msgspec.structs.replace(status, vm_bounds={2: BOUND}))
    assert b"if host2 dies now" in as_text(read(raw)).encode()
    assert as_text(read(raw)) == as_text(msgspec.json.decode(raw, type=Status))


# --- a VM in a word and a sentence ------------------------------------------------------------


def test_a_vm_that_boots_says_what_it_waited_for() -> None:
    found = entry(WEB)
    assert (found.state, found.up, found.healthy, found.host) == (VmWord.BOOTING, True, False, 1)
    assert (found.reason, found.for_s) == ("sso is healthy", 9.0)
    assert entry(WEB, said={WEB: "in 500 s it is stopped"}).reason == "in 500 s it is stopped"


def test_a_vm_that_waits_says_for_what_or_who_is_to_start_it() -> None:
    without = {1: {ENGINE: up()}, 2: {DB: up(), SSO: up("EngineStarting", Health.BAD)}, 3: {}}
    assert (entry(WEB, without).state, entry(WEB, without).reason) == (
        VmWord.WAITING,
        "waits for sso",
    )
    assert entry(WIKI, without).reason == "host2 is to start it"
    assert entry(WIKI, without).order == (2, 3, 1)
    why = "who owns wiki's lease is not known"
    assert entry(WIKI, without, blocked={WIKI: why}).reason == why


def test_a_vm_without_a_place_says_what_it_is_short_of() -> None:
    found = entry(DB, plan=Plan({}, {DB: 6 * GIB}, {DB: 3}), words={**WORDS, 2: {}})
    assert found.state is VmWord.NO_PLACE
    assert found.reason == "6 GiB short (needs 8, host3 has 2)"
    odd = entry(DB, plan=Plan({}, {DB: 100}, {DB: 3}), words={**WORDS, 2: {}})
    assert odd.reason == "100 MiB short (needs 8 GiB, host3 has 7.9 GiB)"
    nobody = entry(DB, plan=Plan({}, {DB: 8 * GIB}), words={**WORDS, 2: {}})
    assert nobody.reason == "no host may run it (needs 8 GiB)"


def test_a_vm_that_somebody_stopped_is_off_and_no_trouble() -> None:
    specs = tuple(replace(v, want=Want.DOWN) if v.number == WIKI else v for v in vms.SPECS)
    found = entry(WIKI, {**WORDS, 3: {}}, specs=specs)
    assert (found.state, found.up) == (VmWord.OFF, False)
    assert found.reason == "somebody stopped it (ha-agent vm start wiki)"


def test_a_vm_that_is_up_and_wanted_down_says_so() -> None:
    """In global maintenance nothing stops such a VM."""
    specs = tuple(replace(v, want=Want.DOWN) if v.number == WIKI else v for v in vms.SPECS)
    found = entry(WIKI, specs=specs)
    assert (found.state, found.up, found.reason) == (VmWord.UP, True, "it is wanted down")


def test_a_vm_that_moves_says_where_to() -> None:
    moving = up("EngineMigratingAway", target=3, moving_until_s=NOW_S + 60)
    found = entry(DB, {**WORDS, 2: {DB: moving, SSO: up()}})
    assert (found.state, found.target, found.reason) == (VmWord.MOVING, 3, "to host3")
    both = entry(DB, {**WORDS, 2: {DB: moving, SSO: up()}, 3: {DB: up(), WIKI: up()}})
    assert (both.state, both.host) == (VmWord.UP, 3), "the guest runs where it is not sent away"


def test_a_vm_that_is_being_started_or_stopped_says_on_which_host() -> None:
    starting = entry(WIKI, {**WORDS, 3: {}, 2: {WIKI: down("EngineStart")}})
    assert (starting.state, starting.up, starting.host) == (VmWord.STARTING, False, 2)
    stopping = entry(WIKI, {**WORDS, 3: {WIKI: up("EngineStop")}})
    assert (stopping.state, stopping.host) == (VmWord.STOPPING, 3)


def test_a_host_that_failed_to_start_a_vm_is_named_with_the_time_left() -> None:
    words = {**WORDS, 3: {WIKI: down(barred_until_s=NOW_S + 412)}, 2: {WIKI: down()}}
    assert entry(WIKI, words).barred == {3: 412.0}
    assert entry(WIKI, {**words, 3: {WIKI: down(barred_until_s=NOW_S)}}).barred == {}


def test_an_unhealthy_vm_says_what_its_check_said() -> None:
    found = entry(WIKI, {**WORDS, 3: {WIKI: up(health=Health.BAD)}})
    assert (found.state, found.healthy) == (VmWord.UP, False)
    assert found.reason == "the health page answers 503"


# --- where it is -------------------------------------------------------------------------------


def test_what_a_slot_does_not_list_is_down_there_unless_it_knows_of_no_vms() -> None:
    hosts = [word(1, {}), word(2, {})]
    assert vms_seen([DB], hosts, OwnReads())[DB].place.up is False
    older = [word(1, {}), replace(word(2, {}), lists=False)]
    assert vms_seen([DB], older, OwnReads())[DB].place.up is None, "it may run there"


@pytest.mark.parametrize("last", [up(), down(), None])
def test_a_silent_host_keeps_a_vm_unknown_whatever_it_said_last(last: object) -> None:
    gone = word(2, {} if last is None else {DB: last}, liveness=Liveness.SILENT, age_s=9.0)  # type: ignore[dict-item]
    found = vms_seen([DB], [word(1, {}), gone], OwnReads())[DB]
    assert found.place.up is None and "wrote nothing for 9 s" in found.place.known
    proven = replace(gone, host=replace(gone.host, sanlock="free"))
    assert vms_seen([DB], [word(1, {}), proven], OwnReads())[DB].place.up is False


def test_a_word_over_the_network_is_a_sign_of_life_and_says_nothing_of_this_vm() -> None:
    heard = vms_seen(
        [DB],
        [word(1, {}), word(2, {DB: up()}, liveness=Liveness.SILENT, heard=VmStatus.DOWN)],
        OwnReads(),
    )[DB]
    assert heard.place.up is None and heard.place.likely == 2
    assert "it answers on the network" in heard.place.known


def test_sizes_for_people() -> None:
    assert [size(mb) for mb in (100, 1024, 1536, 8192)] == ["100 MiB", "1 GiB", "1.5 GiB", "8 GiB"]


# --- ha-agent why NAME --------------------------------------------------------------------------


def why(name: str, words: object = WORDS, **changed: object) -> list[str]:
    status = vms.status(words, **changed)  # type: ignore[arg-type]
    return explain(status, found(status, name))


def test_why_says_where_a_vm_is_and_who_would_take_it() -> None:
    assert why("wiki") == [
        "wiki is up and healthy on host3, for at least 2 h 0 min.",
        "It is wanted up: priority 10, needs 1 GiB.",
        "If host3 died now, these hosts could take it, the first one first:",
        "  host2: 3400 points, 10 GiB free",
        "  host1: 3400 points, 1 GiB free",
    ]
    assert why("web")[:2] == [
        "web boots on host1, for 9 s: sso is healthy.",
        "It is wanted up: priority 50, needs 2 GiB, after sso.",
    ]


def test_why_says_of_each_host_what_is_in_the_way_and_what_would_be_short() -> None:
    assert why("db")[2:] == [
        "If host2 died now, no host could take it:",
        "  host1: no, it has 1 GiB free, and 8 GiB are needed",
        "  host3: no, it has 2 GiB free, and 8 GiB are needed",
        "If host2 dies, db has no place: 6 GiB short (needs 8, host3 has 2).",
    ]


def test_why_says_who_tries_next_and_who_later() -> None:
    words = {**WORDS, 3: {WIKI: down(barred_until_s=NOW_S + 412)}}
    lines = why("wiki", words)
    assert lines[0] == "wiki is down, for at least 2 h 0 min: host2 is to start it."
    assert lines[-2:] == [
        "Next: host2 starts it as soon as nothing is in the way.",
        "host3 tries again in 6 min 52 s.",
    ]


def changed_hosts(**of_host3: object) -> dict[int, HostStatus]:
    hosts = dict(vms.status().hosts)
    return {**hosts, 3: msgspec.structs.replace(hosts[3], **of_host3)}


@pytest.mark.parametrize(
    ("of_host3", "why_not"),
    [
        ({"liveness": "silent"}, "it is silent"),
        ({"maintenance": True}, "it is in local maintenance"),
        ({"host_shutdown": "migrate"}, "it is shutting down"),
        ({"stopped": True}, "its agent is stopped"),
        ({"score": 0}, "its score is 0"),
        (
            {"score": 0, "penalties": (PenaltyOnWire("cannot-start", 3400, "no KVM"),)},
            "cannot start the VM: no KVM",
        ),
        (
            {
                "engine_status": EngineStatus(
                    VmStatus.UNKNOWN, Health.UNKNOWN, "unknown", "libvirt: gone"
                )
            },
            "it does not know what runs there: libvirt: gone",
        ),
        ({"free_mb": 20_000.0}, "its memory is promised to others, or a rule is in the way"),
    ],
)
def test_why_names_the_obstacle_of_a_host(of_host3: dict[str, object], why_not: str) -> None:
    assert f"  host3: no, {why_not}" in why("db", hosts=changed_hosts(**of_host3))


def test_why_names_the_rule_that_keeps_a_vm_from_a_host() -> None:
    status = vms.status()
    ruled = tuple(
        msgspec.structs.replace(vm, only=(1, 2), order=(), prefer=(2,), together=(SSO,))
        if vm.number == DB
        else msgspec.structs.replace(vm, apart=(WIKI,), order=())
        if vm.number == WEB
        else vm
        for vm in status.vms
    )
    lines = why("db", vms=ruled)
    assert lines[1] == (
        "It is wanted up: priority 90, needs 8 GiB, with sso, only on host1 and host2,"
        " prefers host2."
    )
    assert "  host3: no, it is none of the hosts that may run it" in lines
    assert "  host3: no, wiki is there" in why("web", vms=ruled)


def test_why_names_a_rule_that_another_vm_has() -> None:
    """`apart` and `together` hold both ways, whoever says them."""
    ruled = tuple(
        msgspec.structs.replace(vm, apart=(WEB,))
        if vm.number == WIKI
        else msgspec.structs.replace(vm, together=(DB,))
        if vm.number == SSO
        else msgspec.structs.replace(vm, order=(), host=None, up=False)
        if vm.number in (WEB, DB)
        else vm
        for vm in vms.status().vms
    )
    assert "apart from wiki" in why("web", vms=ruled)[1]
    assert "  host3: no, wiki is there" in why("web", vms=ruled)
    lines = why("db", vms=ruled)
    assert "with sso" in lines[1] and "  host1: no, sso is on host2" in lines


def test_why_names_a_rule_that_is_not_kept() -> None:
    """A rule that came after the VMs had started is kept later; nothing said so."""
    ruled = tuple(
        msgspec.structs.replace(vm, apart=(DB,), together=(WIKI,)) if vm.number == SSO else vm
        for vm in vms.status().vms
    )
    broken = "A rule is not kept on host2: db is there too and wiki is on host3."
    assert why("sso", vms=ruled)[2:4] == [
        broken,
        "A VM that has been up there for 10 min 0 s is moved for it, where a host can take it; at"
        " once: ha-agent migrate sso",
    ]
    held = why("sso", vms=ruled, global_maintenance=True)
    assert held[2] == broken and not any("is moved for it" in line for line in held)
    assert "db" not in why("sso")[2]


def test_why_of_a_vm_on_a_silent_host_says_what_its_death_waits_for() -> None:
    """That the fence device refuses the login stood in the engine's own lines alone."""
    said = "the fence device of host2 (id 2) gives no answer: Incorrect password provided"
    reasons = (ReasonOnWire("power-unknown", said), ReasonOnWire("up-elsewhere", "it is up"))
    gone = tuple(
        msgspec.structs.replace(vm, up=None, state=VmWord.UNKNOWN, order=())
        if vm.number == DB
        else vm
        for vm in vms.status().vms
    )
    lines = why("db", vms=gone, reasons=reasons)
    assert lines[2:4] == [f"host1: {said}.", "No host may start it now:"]
    assert not any(said in line for line in why("sso", vms=gone, reasons=reasons))


def test_why_of_a_vm_that_nobody_wants_or_in_global_maintenance() -> None:
    status = vms.status()
    off = tuple(
        msgspec.structs.replace(vm, want="down", up=False, state=VmWord.OFF, host=None)
        for vm in status.vms
    )
    assert why("db", vms=off)[-1] == ("It stays so until somebody wants it: ha-agent vm start db.")
    stopping = tuple(
        msgspec.structs.replace(vm, want="down", state=VmWord.STOPPING) for vm in status.vms
    )
    assert why("db", vms=stopping)[2:] == [
        "Once it is down it stays so until somebody wants it: ha-agent vm start db."
    ], "no host would take it"
    assert why("db", global_maintenance=True)[-1] == (
        "Nothing would change it while global maintenance lasts."
    )


@pytest.mark.parametrize(
    ("state", "begins"),
    [
        (VmWord.UNKNOWN, "Whether db is up is not known"),
        (VmWord.MOVING, "db is being migrated from host2"),
        (VmWord.STOPPING, "db is being stopped on host2"),
        (VmWord.STARTING, "db is down, for 3 d 0 h; host2 starts it"),
        (VmWord.NO_PLACE, "db is down"),
    ],
)
def test_why_begins_with_how_the_vm_stands(state: VmWord, begins: str) -> None:
    vm = msgspec.structs.replace(vms.status().vms[1], state=state)
    refused = msgspec.structs.replace(vm, refused="its record cannot be read")
    lines = explain(vms.status(), refused)
    assert lines[0].startswith(begins)
    assert lines[2] == "This host cannot start it: its record cannot be read."


def test_a_name_that_no_vm_has_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(CommandError, match="no such VM; there are: engine, db, sso, web, wiki"):
        found(vms.status(), "dB")
    assert found(vms.status(), "2").name == "db", "a number will do"


@pytest.mark.parametrize(
    ("code", "then"),
    [
        ("memory-differs", "Its next start takes the definition"),
        ("disks-differ", "As long as its disks differ no host starts it, even when host2 has died"),
    ],
)
def test_what_a_difference_means_for_the_next_start(code: str, then: str) -> None:
    """A VM whose disks differ is held back (docs/decisions/0095); the status said of it too that
    its next start takes the definition."""
    status = vms.status()
    differing = tuple(
        msgspec.structs.replace(vm, differs=(code,)) if vm.number == DB else vm for vm in status.vms
    )
    lines = why("db", vms=differing)
    assert any(then in line for line in lines)
    shown = msgspec.structs.replace(status, vms=differing)
    assert any(line.startswith("db on ") and then in line for line in what_is_wrong(shown))


def test_a_vm_whose_disks_differ_is_not_promised_to_answer() -> None:
    bound = Bound(8.0, 3.5, 2.0, 1.0, 1.5, "its fence device")
    assert _held_back(bound, "db", ("memory-differs",)) is bound
    held = _held_back(bound, "db", ("disks-differ", "memory-differs"))
    assert held.total_s is None and "ha-agent vm define db --from-running" in held.held
