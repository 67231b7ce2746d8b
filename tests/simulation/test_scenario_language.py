# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of scenarios do what their README says: each is told, and its effect is looked at."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.simulation.grammar import CONDITIONS, FORMS
from tests.simulation.scenario import (
    PENALTIES,
    BadScenario,
    Disappointed,
    Player,
    load,
    parse,
    rehearse,
)

UP = "expect engine healthy within 240\n"
README = Path(__file__).parents[1] / "scenarios" / "README.md"


def told(body: str, hosts: str = "3", name: str = "x.txt") -> Player:
    """A story that has been played to its end."""
    player = Player(parse(name, f"# a story\nhosts {hosts}\n{body}"))
    player.play()
    return player


def refused_unplayed(text: str, line: int, complaint: str) -> None:
    """That line of a story is refused, and nothing of the story was played."""
    played: list[str] = []
    with pytest.raises(BadScenario, match=rf"x\.txt:{line}: .*{complaint}"):
        Player(parse("x.txt", text), played.append).play()
    assert not played


def said(player: Player, text: str) -> bool:
    """Whether a line of the trace has that text."""
    return any(text in what for _, _, what in player.world.trace)


# --- the telling ------------------------------------------------------------------------------


def test_a_sweep_tells_the_story_anew_for_each_value() -> None:
    """One telling for each value; the variable is replaced, alone or in a sum."""
    text = "# a\nhosts 2\nfor t in 0..1 step 0.25\nwait t\nwait 2+t\nwait {t}\nexpect moves 0\n"
    scenario = parse("x.txt", text)
    assert [label for label, _ in scenario.tellings] == [
        "t = 0",
        "t = 0.25",
        "t = 0.5",
        "t = 0.75",
        "t = 1",
    ]
    waits = [step.words[0] for step in scenario.tellings[3][1] if step.verb == "wait"]
    assert waits == ["0.75", "2.75", "0.75"]


def test_each_telling_of_a_sweep_is_played_and_the_one_that_fails_is_named() -> None:
    """A sweep that plays its first value only proves nothing."""
    sweep = "# a\nfor t in 1..3\nhosts 1 power off\nwait t\nexpect not power of host1 on within 0\n"
    scenario = parse("x.txt", sweep)
    played: list[str] = []
    Player(scenario, played.append).play()
    assert [line for line in played if line.startswith("wait")] == ["wait 1", "wait 2", "wait 3"]
    bad = "# a\nhosts 1\nfor t in 1..3\nwait t\nexpect not moves 3-t\n"
    with pytest.raises(Disappointed, match="with t = 3: "):
        Player(parse("x.txt", bad)).play()


def test_the_unit_of_a_time_may_stand_apart() -> None:
    """Seconds are what a bare number means."""
    assert parse("x.txt", "# a\nhosts 1\nwait 60 s\nexpect moves 0\n").steps[1].words == ("60",)
    told("wait 60 s\nexpect downtime below 2 s\nexpect not engine healthy for 1 s\n", "1 power off")


def test_what_a_host_was_before_its_agent_ended_is_not_what_it_is() -> None:
    """A story that waits for a state must not be content with the one of before."""
    for condition in ("last in EngineUp", "score of last is 3400"):
        story = f"{UP}wait 30\nset agent dead owner\nset libvirt off last\nset agent on last\n"
        with pytest.raises(Disappointed, match="not so"):
            told(f"{story}expect {condition}\n")


@pytest.mark.parametrize(
    "line",
    ["power freeze owner 30", "power suspend all 50", "stop broker owner", "stop qemu owner"],
)
def test_a_story_may_end_while_something_stands_still(line: str) -> None:
    """The end of the story is no fault of what cannot run at that moment."""
    told(f"{UP}{line}\nwait 1\n")


def test_last_is_the_owner_and_without_one_the_host_that_a_vm_stood_for() -> None:
    """A story of a database is told without the engine's owner."""
    start = f"vm db only host2\n{UP}expect vm db healthy on host2 within 60\n"
    told(f"{start}power off db\nexpect power of last off\nexpect power of host2 off\n")
    told(f"{start}power off owner\nwait 1\nkill agent db\nexpect power of last off\n")
    with pytest.raises(BadScenario, match="names the owner, or a VM as its host"):
        told(f"{start}power on last\n")


def test_a_vm_needs_no_more_than_a_name() -> None:
    """Each of its options may be left out, so all may; said again, nothing is said."""
    told(f"{UP}vm db\nexpect vm db healthy within 90\n")
    with pytest.raises(BadScenario, match="words are missing"):
        told("vm db\nvm db\nexpect moves 0\n")


def test_hosts_leave_join_and_are_replaced() -> None:
    """The slot of one that left is empty and its id is free; a refusal changes nothing."""
    player = told(f"{UP}wait 30\nhost leave owner\nwait 20\nexpect engine healthy\n")
    assert said(player, "leave of host")
    player = told(f"{UP}wait 30\nhost leave others\nwait 20\nexpect id of others free\n")
    left = [host for host in player.world.hosts.values() if host is not player.world.owner()]
    assert not any(player.world.board.slots[host.host_id].strip(b"\0") for host in left)
    player = told(f"{UP}wait 30\nhost clean owner\nwait 5\nexpect engine healthy\n")
    assert said(player, "clean-metadata of host")
    player = told(f"{UP}storage reinitialized\nwait 5\nexpect engine healthy\n")
    assert said(player, "reinitialize-lockspace of host")


def test_repeat_before_the_hosts_tells_the_story_with_other_chance() -> None:
    """Each time the hosts boot at other moments."""
    scenario = parse("x.txt", "# a\nrepeat 2\nhosts 2\nexpect engine healthy within 240\n")
    first = Player(scenario)
    boots_s = [host.boot_s for host in first.world.hosts.values()]
    first.play()
    assert [host.boot_s for host in first.world.hosts.values()] != boots_s


def test_a_block_comes_as_often_as_it_says() -> None:
    """`repeat N … end` behind the hosts, `for … end`, and one inside the other."""
    text = "# a\nhosts 1\nrepeat 2\nfor t in 1..2\nwait t\nend\nwait 9\nend\nexpect moves 0\n"
    waits = [step.words[0] for step in parse("x.txt", text).steps if step.verb == "wait"]
    assert waits == ["1", "2", "9", "1", "2", "9"]
    text = "# a\nhosts 1\nrepeat 3\nwait 4\nexpect moves 0\n"
    assert len(parse("x.txt", text).steps) == 7


@pytest.mark.parametrize("verb", sorted(FORMS.keys() - {"hosts"}))
def test_each_verb_may_stand_in_a_block_and_in_a_sweep(verb: str) -> None:
    """With the number of its turn in any of its words but the first."""
    line = f"{verb} db{{t}} t" if verb != "expect" else "expect moves t"
    block = f"# a\nhosts 1\nrepeat 2\nfor t in 1..2\n{line}\nend\nend\nexpect moves 0\n"
    words = [step.words for step in parse("x.txt", block).steps if step.verb == verb]
    first = [("moves", "1"), ("moves", "2")] if verb == "expect" else [("db1", "1"), ("db2", "2")]
    assert words[:4] == first * 2
    sweep = f"# a\nhosts 1\nfor t in 3..4\n{line}\nexpect moves 0\n"
    last = ("moves", "3") if verb == "expect" else ("db3", "3")
    assert next(step.words for step in parse("x.txt", sweep).steps if step.verb == verb) == last


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("for t in 3..1\nwait t", r"x\.txt:3: .* upwards"),
        ("for t from 1 to 3\nwait t", r"x\.txt:3: .* it goes: for NAME in"),
        ("for t in 1..3\nwait 4", r"x\.txt:3: .* no line uses t"),
        ("repeat often\nwait 4", r"x\.txt:3: .* it goes: repeat N"),
        ("end", r"x\.txt:3: end: nothing begins"),
    ],
)
def test_a_line_about_the_telling_that_does_not_fit_is_named(lines: str, complaint: str) -> None:
    """With its number and what would fit."""
    with pytest.raises(BadScenario, match=complaint):
        parse("x.txt", f"# a\nhosts 1\n{lines}\nexpect moves 0\n")


def test_the_story_depends_neither_on_the_name_of_its_file_nor_on_what_it_expects() -> None:
    """The trace stays, but for the lines of the expectations themselves."""
    traces = []
    for name, more in (("a.txt", ""), ("b.txt", "expect moves 0\n# and a remark\n")):
        world = told(f"{UP}{more}power off owner\nwait 30\n", name=name).world
        traces.append([line for line in world.trace if not line[2].startswith("expect")])
    assert traces[0] == traces[1]


@pytest.mark.parametrize(
    "line",
    [
        "stop everything host1 3",
        "storage fails host1 tape",
        "network split host1 host2",
        "network split host1 / host1",
        "network loss 130 host1",
        "bmc silent host1 from host2",
        "bmc off-takes host1",
        "timing nonsense 3 host1",
        "timing fence-after 1 host1",
        "virsh dance host1",
        "watchdog perhaps host1",
        "expect order done within 3",
        "expect order done",
        "expect moves some",
        "expect fenced -1",
        "expect engine healthy within inf",
        "wait 1e300",
        "hosts 3",
        "forge slot 3000",
        "forge slot 5 score",
        "forge intents 0 2",
        "set load 7 host1",
        "set gateway 150% host1",
        "set memory -1 host1",
        "set id 2001 host1",
        "vm db memory 0",
        "maintenance local on host1 for",
        "end repeat",
    ],
)
def test_a_line_that_does_not_fit_is_refused(line: str) -> None:
    """With its number."""
    with pytest.raises(BadScenario, match=r"x\.txt:3: "):
        told(f"{line}\n{UP}", hosts="2")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """With its name, and no traceback; a mark of the byte order is no mistake."""
    for name, holds in (("folder", None), ("none.txt", None), ("latin.txt", b"# \xe9\nhosts 2\n")):
        path = tmp_path / name
        if holds is not None:
            path.write_bytes(holds)
        elif name == "folder":
            path.mkdir()
        with pytest.raises(BadScenario, match=name):
            load(path)
    path.write_bytes(b"\xef\xbb\xbf# a\r\nhosts 1\r\nexpect moves 0\r\n")
    assert load(path).sentence == "a"


@pytest.mark.parametrize("verb", FORMS)
def test_the_readme_has_each_form_and_no_other(verb: str) -> None:
    """What an author reads is what an error names."""
    cells = [line.split(" | ")[0] for line in README.read_text().splitlines() if line[:2] == "| "]
    told = re.findall(r"`(.+?)`", "\n".join(cells).replace("\\|", "|"))
    assert {form for form in told if form.split()[0] == verb} == set(FORMS[verb])


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_readme_has_each_condition(condition: str) -> None:
    """In its own line."""
    text = re.sub(r"(engine running)( \[on HOST\])", r"\1|healthy|reachable\2", README.read_text())
    assert f"    {condition}" in text


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("power reboots host1", "'reboots' is not known, did you mean 'reboot'"),
        ("power freeze host1", "words are missing, .* it goes: power freeze HOST S"),
        ("power off host9", "no host 'host9'; there are: host1, host2, owner, last, others, all"),
        ("storage down whiteboard on host1", "'down' is not known; known are: fine, hangs, fails"),
        ("storage hangs leases on hots1", "'hots1' is not known|no host 'hots1'|names no host"),
        ("storage late host1 3 leeses", "'leeses' is not known, did you mean 'leases'"),
        ("network split host1 host2", "a / between two sides, .* it goes: network split HOST"),
        ("timing fence-aftr 3 host1", "did you mean 'fence-after'"),
        ("guest unreacheable", "did you mean 'unreachable'"),
        ("guest paused ioerror", "did you mean 'io-error'"),
        ("set agents off host1", "did you mean 'agent'"),
        ("set starts perhaps host1", "known are: yes, no, on, off"),
        ("expect engine up within 3", "no condition; one is: engine running|healthy"),
        ("expect host1 in EngineUpp within 3", "did you mean 'EngineUp'"),
        ("expect engine healthy within", "behind 'within' a number of seconds is missing"),
        ("wait soon", "'soon' is no number; it goes: wait S"),
        ("wait -1", "a time is not below 0"),
        ("expekt moves 0", "did you mean 'expect'"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, complaint: str) -> None:
    """The line, the word, what was meant, and what would fit."""
    with pytest.raises(BadScenario, match=rf"x\.txt:3: .*{complaint}"):
        told(f"{line}\n{UP}", hosts="2 power off")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("power reboots owner", "did you mean 'reboot'"),
        ("expect order done", "nobody gave an order before"),
        ("set load high owner", "'high' is no number"),
        ("guest db paused ioerror", "did you mean 'io-error'"),
        ("guest paused ioerror", "did you mean 'io-error'"),
        ("migrate db to host9", "no host 'host9'"),
        ("migrate sso", "'sso' is not known"),
        ("expect vm db helthy within 30", "did you mean 'healthy'"),
        ("vm db after sso", "'sso' is not known"),
        ("bmc slient db for others", "did you mean 'silent'"),
        ("expect downtime below 3-t", "no downtime is below 0"),
    ],
)
def test_a_mistake_is_told_before_anything_is_played(line: str, complaint: str) -> None:
    """Also behind lines whose end nobody knows yet, and in the last telling alone."""
    story = f"vm db\n{UP}expect vm db healthy within 90\npower off owner,db\nfor t in 1..4\n"
    refused_unplayed(
        f"# a\nhosts 3\n{story}wait t\n{line}\nexpect engine healthy within 90\n", 9, complaint
    )


@pytest.mark.parametrize("path", sorted(README.parent.glob("*.txt")), ids=lambda path: path.stem)
def test_a_story_without_a_mistake_is_not_refused(path: Path) -> None:
    """What a line finds at its moment is nobody's mistake before it."""
    rehearse(load(path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("expect host1 lacks netwrok within 9", "did you mean 'network'"),
        ("expect not host1 lacks storage", "'storage' is not known"),
        ("vm a/b", "'a/b' is no name for a VM: letters, digits"),
        ("vm 17", "'17' is no name for a VM"),
        ("vm web priority 101", "ha-agent vm refuses it: .*priority"),
        ("vm web memory 1e9", "ha-agent vm refuses it: .*memory_mb"),
        ("vm web bad-health 0", "ha-agent vm refuses it: .*bad_health_s"),
        ("vm web memory 512 memory 1024", "'memory' is said twice"),
        ("vm web together db apart db", "web are to be together and apart"),
        ("vm db after db", "db cannot be after itself"),
        ("vm web after db,,db", "between two commas a name is missing"),
        ("power off host1,,host2", "no host ''; there are: host1, host2"),
        ("storage slow host1", "a number of seconds is missing"),
        ("storage joined", "no line before this one splits it"),
        ("timing io-timeout 0 host1", "'0' is not from 1 to 60"),
        ("network cut host1 host1", "host1 and host1 are one host"),
        ("network loss 50 host1 host1", "host1 and host1 are one host"),
        ("network delay inf host1", "no story lasts longer"),
        ("network bmc down host1 host2", "too many"),
        ("virsh destroy host1 db 5", "too many"),
        ("virsh destroy host1 db unlocked", "too many"),
        ("watchdog on host1 5", "too many"),
        ("guest ordered-on host1 start host2", "too many"),
        ("guest ordered-on host1 keep host2", "too many"),
        ("guest ordered-on all migrate", "'all' are 2 hosts, one is needed here"),
        ("guest ordered-on host1 migrate to all", "'all' are 2 hosts, one is needed here"),
        ("guest reachable host1", "too many"),
        ("migrate db all", "'all' are 2 hosts, one is needed here"),
        ("maintenance local on", "it names no host"),
        ("maintenance local on host1 at", "'at' belongs to: maintenance global"),
        ("maintenance global on for 0", "a maintenance lasts for 1 to"),
        ("slot garbled", "words are missing"),
        ("slot newer host1", "too many"),
        ("forge slot 5 once yes once no", "'once' is said twice"),
        ("set clock inf host1", "is not from"),
        ("set memory inf host1", "is not from"),
        ("expect host1 says within 9", "is no condition"),
        ("expect host1 says booted", "it goes: expect HOST says TEXT within S"),
        ("expect not host1 says booted within 9", "it goes: expect not HOST says TEXT for S"),
        ("expect not host1 tells host-down within 9", "what was told stays told"),
        ("expect not downtime below 0", "no downtime is below 0"),
        ("expect downtime below inf", "no story lasts longer"),
        ("expect not vm db moves -1", "'-1' is not from 0 on"),
        ("expect not short db 0", "'0' is not from 1 on"),
        ("expect not score of host1 is -5", "'-5' is not from 0 on"),
        ("expect not host1 finds host1 elsewhere", "host1 and host1 are one host"),
    ],
)
def test_what_was_swallowed_before_is_refused(line: str, complaint: str) -> None:
    """Nothing of it is played."""
    refused_unplayed(
        f"# a\nhosts 2\nvm db\n{line}\nexpect engine healthy within 90\n", 4, complaint
    )


def test_an_option_of_the_cluster_is_said_once_and_others_are_others() -> None:
    with pytest.raises(BadScenario, match=r"x\.txt:2: .*'fence' is said twice"):
        Player(parse("x.txt", "# a\nhosts 2 fence no fence yes\nexpect moves 0\n"))
    with pytest.raises(BadScenario, match=r"x\.txt:3: .*there are no others"):
        told("expect power of others off\n", hosts="1")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("set id 3 host1", "the daemons of host1 run, and read 'id' when they start"),
        ("set key other others", "run, and read 'key' when they start"),
        ("kill qemu others", "no qemu is on .* at this moment"),
        ("kill qemu db", "no process of db is anywhere at this moment"),
        ("set agent dead host1\nkill agent host1", "no agent is on host1 at this moment"),
        ("virsh destroy others", "no process of the VM is on .* now"),
    ],
)
def test_what_would_do_nothing_at_its_moment_is_told_then(line: str, complaint: str) -> None:
    """A story whose trouble never comes proves nothing."""
    body = f"vm db want down\n{UP}wait 20\n{line}\nexpect moves 0\n"
    with pytest.raises(BadScenario, match=rf"x\.txt:\d: .*{complaint}"):
        told(body)


@pytest.mark.parametrize(
    "story", ["set daemons off host1\n{}\nset daemons on host1", "{}\nkill broker host1"]
)
def test_what_is_configured_may_be_set_where_the_daemons_start_anew(story: str) -> None:
    told(f"{UP}{story.format('set key other host1')}\nwait 5\n")


def test_a_sweep_may_come_to_moments_at_which_a_line_does_nothing() -> None:
    """The VM is gone since a moment."""
    sweep = f"for t in 0..0.1 step 0.1\n{UP}kill qemu all\nwait t\nkill qemu all\n"
    assert said(told(sweep), "no qemu is on host1, host2, host3 at this moment")


def test_the_penalties_are_those_of_the_documents() -> None:
    """Two are left out, which a host's broker adds by itself: no agent reports them."""
    status = (README.parents[2] / "docs" / "status.md").read_text()
    table = status.partition("## `penalties`")[2].partition("## `reasons`")[0]
    named = set(re.findall(r"^\| `([a-z-]+)` \| (?!string|integer)", table, re.MULTILINE))
    assert set(PENALTIES) == named - {"storage", "agent"}


def test_who_is_expected_need_not_be_there_yet() -> None:
    """Nobody runs the VM when the expectation begins."""
    up = "expect engine healthy on owner within 240\nwait 30\n"
    gone = "expect not engine running on owner within 1\nexpect owner in EngineUp within 90\n"
    told(f"{up}power off owner\nwait 3\n{gone}")
    with pytest.raises(BadScenario, match="so there is no owner"):
        told("expect engine healthy on owner\n")


def test_a_story_without_a_number_of_hosts_is_refused() -> None:
    """In the words of any other line."""
    for first in ("hosts", "hosts some", "hosts 0", "hosts 2 fenc no", "hosts 2 fence"):
        with pytest.raises(BadScenario, match=r"x\.txt:2: hosts"):
            Player(parse("x.txt", f"# a\n{first}\nexpect moves 0\n"))


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("storage hangs leases on owner", "storage hangs owner leases"),
        ("storage leases hangs owner", "storage hangs owner leases"),
        ("storage slow 9s leases owner", "storage slow owner 9 leases"),
        ("storage late 3 owner slots", "storage late owner 3 slots"),
        ("storage fails host1,host2", "storage fails host1\nstorage fails host2"),
        ("power freeze owner for 20s", "power freeze owner 20"),
        ("stop agent 3 on host1", "stop agent host1 3"),
        ("network loss host1 100%", "network loss 100 host1"),
        ("network split host1,host2/host3", "network split host1 host2 / host3"),
        ("network cut others owner", "network cut host1 host3\nnetwork cut host2 host3"),
        ("timing bad-health host1 77", "timing bad-health 77 host1"),
        ("bmc off-takes owner 9", "bmc off-takes 9 owner"),
        ("maintenance local host1 on", "maintenance local on host1"),
        ("guest ordered-on owner migrate to host1", "guest ordered-on owner migrate host1"),
    ],
)
def test_a_line_may_be_said_in_another_order(line: str, same: str) -> None:
    """Both orders of the words give one trace."""
    traces = []
    for each in (line, same):
        start = "power on host3\nexpect engine healthy within 240\npower on all\nwait 100\n"
        world = told(f"{start}{each}\nwait 30\nexpect moves {0 if 'migrate' not in line else 1}\n",
                     hosts="3 power off chance same").world  # fmt: skip
        traces.append([told for told in world.trace if told[1] != "scenario"])
    assert traces[0] == traces[1]


def test_an_order_is_waited_for_where_no_time_is_said() -> None:
    """Until it has ended; all else is so now or not."""
    told(f"{UP}wait 30\nguest ordered-on owner migrate\nexpect order done\nexpect moves 1\n")
    with pytest.raises(Disappointed, match=r"x\.txt:6: expect order done"):
        told(f"{UP}wait 30\nguest ordered-on others start\nexpect order done\n", hosts="2")
    with pytest.raises(Disappointed, match=r"x\.txt:3: .* not so at 0\.0 s"):
        told("expect engine healthy\n")


# --- what is counted --------------------------------------------------------------------------


def test_downtime_moves_and_fenced_are_counted() -> None:
    """A hung owner is switched off once, nothing is moved, and the time is told."""
    body = f"{UP}wait 30\npower freeze owner 600\nwait 120\n"
    player = told(
        f"{body}expect fenced 1\nexpect moves 0\nexpect downtime below 100\n"
        "expect not downtime below 20\nexpect not fenced 0\n"
    )
    assert player.world.fenced() == 1
    with pytest.raises(Disappointed, match=r"longest downtime \d.*fenced 1"):
        told(f"{body}expect fenced 0\n")


def test_an_order_is_done_or_refused_with_its_reason() -> None:
    """A migration on order is counted; one to a host that is off is refused."""
    player = told(
        f"{UP}wait 30\nguest ordered-on owner migrate\nexpect order done within 60\n"
        "expect moves 1 within 10\n"
        "guest ordered-on host1 start\nexpect order refused within 30\n"
    )
    assert player.world.moves == 1


def test_calm_has_the_laws_look_for_a_vm_that_is_up() -> None:
    """A story that calls itself calm while nobody can start the VM breaks law `up`."""
    text = f"{UP}set starts no all\nkill qemu owner\ncalm\nwait 4000\nexpect moves 0\n"
    with pytest.raises(Exception, match="law 'up' broken"):
        told(text, hosts="2")
    told(f"{UP}power off owner\ncalm\nwait 1500\nexpect moves 0\n")


# --- processes --------------------------------------------------------------------------------


def test_a_stopped_agent_and_broker_go_on_where_they_were() -> None:
    """Nothing is said meanwhile, nobody is started anew, and the VM runs on."""
    for name in ("agent", "broker"):
        player = told(f"{UP}wait 30\nstop {name} owner 20\nwait 100\nexpect downtime below 1\n")
        assert said(player, f"{name} is stopped for 20 s")
        assert not said(player, f"{name} ended")
        player = told(
            f"{UP}wait 30\nstop {name} host2 20\nwait 5\nkill {name} host2\n"
            "expect host2 in EngineDown within 40\n"
            if name == "agent"
            else f"{UP}wait 30\nstop {name} host2 20\nwait 5\nkill {name} host2\nwait 30\n"
            "expect engine healthy for 5\n"
        )


def test_a_stopped_broker_is_not_heard() -> None:
    """The others see its slot stand still, and go on when it goes on."""
    slots = []
    for seconds in (2, 12, 25):
        # What is expected changes nothing in the story, so these are one story.
        look = f"expect engine healthy for {seconds}\n"
        world = told(f"{UP}wait 30\nstop broker owner 15\n{look}").world
        owner = world.owner()
        assert owner is not None
        slots.append(world.board.slots[owner.host_id])
    assert slots[0] == slots[1] != slots[2]


def test_a_stopped_sanlock_lets_the_watchdog_fire() -> None:
    """The host id is not renewed, and a stopped sanlock cannot end QEMU, so the watchdog resets the
    host."""
    player = told(
        f"{UP}wait 30\nstop sanlock owner 400\nwait 200\nexpect engine healthy within 200\n"
    )
    assert said(player, "reset: watchdog")


def test_a_stopped_libvirtd_and_qemu_go_on() -> None:
    """A guest that stands still for 20 s is not restarted at once."""
    told(f"{UP}wait 30\nstop libvirtd owner 20\nwait 60\nexpect downtime below 1\n")
    player = told(
        f"{UP}wait 30\nstop qemu owner 20\nexpect not engine healthy within 1\n"
        "expect engine healthy within 25\nexpect not downtime below 10\n"
    )
    assert not said(player, "QEMU ended")


def test_an_agent_that_is_wanted_again_while_it_ends_comes_back() -> None:
    """`on` right behind `off` is not lost."""
    told(
        f"{UP}wait 30\nset agent off others\nset agent on others\nwait 20\n"
        "expect others in EngineDown within 20\n"
    )


def test_a_watchdog_that_is_off_resets_nobody() -> None:
    """A watchdog that fires for no reason resets a healthy host."""
    player = told(f"{UP}watchdog off host1\npower freeze host1 70\nwait 100\n", hosts="1")
    assert not said(player, "reset: watchdog")
    player = told(f"{UP}watchdog fires host1\n{UP}", hosts="1")
    assert said(player, "reset: watchdog: it fires")


# --- storage, network, BMC --------------------------------------------------------------------


def test_parts_of_the_storage_fail_apart() -> None:
    """Only the whiteboard: the VM runs on. Only the disk: the guest is sick. Only the leases:
    sanlock ends the VM."""
    told(f"{UP}wait 30\nstorage fails owner whiteboard\nwait 60\nexpect downtime below 1\n")
    told(f"{UP}wait 30\nstorage hangs owner disk\nexpect not engine healthy within 12\n")
    player = told(
        f"{UP}wait 30\nstorage hangs owner leases\n{UP}wait 100\nexpect engine healthy within 200\n"
    )
    assert said(player, "QEMU ended: sanlock")


def test_a_storage_that_takes_no_writes_is_read_all_the_same() -> None:
    """sanlock cannot renew; the host still reads what the others write."""
    player = told(
        f"{UP}wait 30\nstorage read-only owner leases\nwait 100\nexpect engine healthy within 200\n"
    )
    assert said(player, "QEMU ended: sanlock")
    told(f"{UP}wait 30\nstorage read-only others whiteboard\nwait 30\nexpect downtime below 1\n")
    told(f"{UP}wait 30\nstorage unreadable owner whiteboard\nwait 60\nexpect downtime below 1\n")
    told(
        f"{UP}wait 30\nstorage read-only owner\nwait 10\nstorage fine owner\nwait 60\n"
        "expect moves 0\n"
    )


def test_slow_leases_are_felt_by_sanlock() -> None:
    """Each renewal lands late, and the VM runs on while they land in time."""
    player = told(f"{UP}wait 30\nstorage slow owner 9 leases\nwait 200\nexpect downtime below 1\n")
    owner = player.world.owner()
    assert owner is not None and owner.sanlock is not None
    assert owner.leases_slow_s() == 9.0
    # Past its io_timeout it gives each write up, though it lands.
    told(
        f"{UP}wait 30\nstorage slow owner 12 leases\nexpect not engine running on last within 110\n"
    )


def test_the_network_splits_loses_and_delays() -> None:
    """By the world's own word on who reaches whom."""
    world = told(f"network split host1 host2 / host3\n{UP}").world
    one, two, three = world.hosts.values()
    assert world.reaches(one, two)
    assert not world.reaches(one, three) and not world.reaches(three, two)
    world = told(f"network split host1 / host2\nnetwork joined\n{UP}").world
    assert world.reaches(world.hosts[1], world.hosts[2])
    world = told(f"network loss 100 host1 host2\nnetwork delay 2 host1 host3\n{UP}").world
    one, two, three = world.hosts.values()
    assert not world.reaches(one, two) and world.reaches(two, three)
    assert world.delay_s(three, one) == 2.0
    world = told(f"network loss 30 host2\nnetwork delay 0.5 host2\n{UP}").world
    assert (world.hosts[2].packet_loss, world.hosts[2].packet_delay_s) == (0.3, 0.5)


def test_a_bmc_that_one_host_reaches_and_another_does_not() -> None:
    """The one that it answers takes over by proof."""
    player = told(
        f"{UP}wait 60\nbmc silent owner for host1\npower off owner\n{UP}expect downtime below 70\n"
    )
    assert said(player, "frees host id")
    world = told(f"bmc silent host1 for host2 host3\nbmc network down host2\n{UP}").world
    assert world.hosts[1].bmc.fault_for == {2: "silent", 3: "silent"}
    assert not world.hosts[2].bmc_network_up


def test_a_bmc_that_takes_its_time() -> None:
    """The power is gone so long after the order."""
    player = told(f"{UP}wait 30\nbmc off-takes 25 owner\npower freeze owner 50\nwait 60\n{UP}")
    trace = player.world.trace
    ordered_s = next(at_s for at_s, _, what in trace if what.startswith("switches host"))
    gone_s = next(at_s for at_s, _, what in trace if what.startswith("power off: by its BMC"))
    assert gone_s - ordered_s == pytest.approx(25.0)


@pytest.mark.parametrize("mood", ["every-other", "caches", "own-power", "on-fails", "on-ignored"])
def test_moods_of_a_bmc(mood: str) -> None:
    """A power cut costs time at most: the VM is up again, and no law is broken."""
    told(f"{UP}wait 60\nbmc {mood} all\npower off owner\nexpect engine healthy within 300\n")


# --- the guest and by hand --------------------------------------------------------------------


def test_a_guest_that_reboots_is_back_by_itself() -> None:
    """The guest is sick for as long as it boots, and nobody ends its VM."""
    player = told(
        f"{UP}wait 30\nguest reboots\nwait 60\nexpect not downtime below 15\n"
        "expect engine healthy for 5\n"
    )
    assert not said(player, "QEMU ended")


def test_started_by_hand() -> None:
    """With its lease it is refused beside a running one; without one nobody starts a second."""
    player = told(f"{UP}wait 30\nvirsh start others\nwait 30\nexpect downtime below 1\n", hosts="2")
    assert said(player, "virsh start on") and said(player, "fails")
    player = told(
        "maintenance global on\nwait 100\nvirsh start host2\n"
        "expect engine healthy on host2 within 60\n"
        "maintenance global off\nexpect engine healthy on host2 for 60\n"
    )


def test_a_host_has_a_timing_of_its_own() -> None:
    """The timing is in force from the next start of the host's daemons on."""
    world = told(f"timing bad-health 77 host2\ntiming io-timeout 5 host3\n{UP}").world
    assert world.config(world.hosts[2]).timing_rules().bad_health == 77.0
    assert world.config(world.hosts[1]).timing_rules().bad_health != 77.0
    assert world.config(world.hosts[3]).storage.io_timeout == 5


def test_a_libvirtd_that_dies_breaks_a_migration_off() -> None:
    """The VM goes on at its source; it is not moved."""
    player = told(
        f"{UP}wait 30\nset migration-takes 20 owner\nguest ordered-on owner migrate\nwait 10\n"
        "kill libvirtd owner\nexpect order refused within 60\nexpect moves 0\n"
        "expect downtime below 1\n"
    )
    assert said(player, "migrates the VM")


# --- storage that lies, clocks, hosts that differ ---------------------------------------------


def test_stale_reads_show_what_was_there_but_for_own_writes() -> None:
    """The named part is stale until the storage is fine again; a writer reads his own writes."""
    world = told(f"{UP}wait 30\nstorage stale host2 whiteboard\nwait 30\nexpect moves 0\n").world
    host = world.hosts[2]
    assert host.whiteboard.read()[2] == world.board.slots[2], "its own writes"
    assert host.whiteboard.read()[1] != world.board.slots[1]
    assert host.leases.stale is None
    world = told(
        f"{UP}storage stale host2 leases\nwait 60\nstorage fine host2\nexpect moves 0\n"
    ).world
    assert world.hosts[2].leases.stale is None and world.hosts[2].whiteboard.stale is None


def test_a_storage_that_splits_has_two_histories() -> None:
    """For what runs too; and one in the end."""
    body = f"{UP}wait 30\nstorage split host1 host2 / host3\nwait 30\n"
    world = told(f"{body}expect moves 0\n").world
    one, two, three = world.hosts.values()
    assert one.whiteboard.is_same(two.whiteboard) and not one.leases.is_same(three.leases)
    assert three.whiteboard.slots[1] != one.whiteboard.slots[1]
    assert three.whiteboard.slots[3] != one.whiteboard.slots[3]
    assert one.is_on_shared and not three.is_on_shared
    world = told(f"{body}storage joined\nwait 1\nexpect moves 0\n").world
    assert all(host.is_on_shared for host in world.hosts.values())


def test_a_storage_that_is_set_back_is_as_it_was() -> None:
    """All of it, or the part that is named; without a snapshot there is nothing to restore."""
    body = f"{UP}wait 30\nstorage snapshot\nwait 30\n"
    end = "expect moves 0\n"
    same = "3 chance same"
    before = told(f"{body}{end}", same).world
    kept = told(f"{UP}wait 30\n{end}", same).world
    back = told(f"{body}storage restored\n{end}", same).world
    assert back.board.slots == kept.board.slots != before.board.slots
    assert back.leases.deltas == kept.leases.deltas != before.leases.deltas
    back = told(f"{body}storage restored leases\n{end}", same).world
    assert back.board.slots == before.board.slots and back.leases.deltas == kept.leases.deltas
    with pytest.raises(BadScenario, match="no line before this one takes a snapshot"):
        told(f"storage restored\n{end}")


def test_a_monotonic_clock_jumps_on_its_host_alone() -> None:
    """What was due meanwhile is due at once; sanlock's renewals look old to it."""
    body = f"{UP}wait 30\n"
    world, plain = (
        told(f"{body}{line}expect moves 0\n", "3 chance same").world
        for line in ("clock jumps 50 host2\n", "")
    )
    gained_s = {n: world.hosts[n].clock_s() - plain.hosts[n].clock_s() for n in (1, 2)}
    assert gained_s == {1: 0.0, 2: pytest.approx(50.0)}
    # The host's sanlock ends the VM, and then takes its id back at once (record 76).
    player = told(f"{body}clock jumps 100 owner\nwait 1\nexpect engine healthy within 100\n")
    assert said(player, "QEMU ended: sanlock")


def test_a_full_storage_pauses_each_guest_that_writes() -> None:
    """Whatever the error policy is; and the whiteboard takes no write, and is read."""
    player = told(f"{UP}wait 30\nstorage full owner\nwait 5\nexpect not engine running\n")
    assert said(player, "QEMU pauses the guest")
    host = next(host for host in player.world.hosts.values() if host.qemu is not None)
    assert host.reads_whiteboard and host.storage.says("leases") == "No space left on device"
    assert player.world.brokers[host.number].board.write_problem.endswith("left on device")


def test_what_is_open_on_a_replaced_storage_stays_stale() -> None:
    """QEMU and sanlock, until they are started anew; the daemons open theirs anew."""
    body = f"{UP}wait 30\nstorage replaced owner\nwait 5\nstorage fine owner\nwait 15\n"
    world = told(f"{body}expect not engine healthy\nexpect engine running\n").world
    host = next(host for host in world.hosts.values() if host.qemu is not None)
    assert host.is_sanlock_stale and not world.brokers[host.number].board.write_problem
    player = told(f"{body}wait 70\nexpect not engine running on last\n")
    assert said(player, "QEMU ended: sanlock")
    assert not any(host.is_sanlock_stale for host in player.world.hosts.values())


def test_a_suspended_host_feels_nothing_of_it() -> None:
    """The watchdog and the clock of sanlock stand still, the clock of the product does not."""
    player = told(f"{UP}wait 30\npower suspend owner 70\nwait 65\nexpect not engine healthy\n"
                  "expect engine healthy within 10\n", "3 fence no")  # fmt: skip
    assert not said(player, "reset: watchdog") and not said(player, "QEMU ended")
    world, plain = (
        told(f"{UP}{line}wait 80\nexpect moves 0\n", "3 fence no chance same").world
        for line in ("power suspend host2 70\n", "")
    )
    behind_s = plain.hosts[2].monotonic_s() - world.hosts[2].monotonic_s()
    assert behind_s == pytest.approx(70.0, abs=0.1)
    assert plain.hosts[2].clock_s() == world.hosts[2].clock_s()


def test_hosts_differ_in_key_and_fence_devices() -> None:
    """From the next start of their daemons on."""
    body = "set key other host2\npower on all\nexpect engine healthy within 240\n"
    world = told(f"{body}wait 30\nexpect moves 0\n", hosts="3 power off").world
    hears = {n: broker.heartbeats.heard_within(30.0, world.hosts[n].clock_s())
             for n, broker in world.brokers.items()}  # fmt: skip
    assert [set(hears[n]) for n in (1, 2, 3)] == [{3}, set(), {1}]
    player = told(
        "set fence no host2\npower on host1\nexpect engine healthy within 240\npower on host2\n"
        "wait 90\npower off host1\nexpect not engine running for 60\n",
        hosts="2 power off",
    )
    assert not said(player, "reads power")


def test_a_disk_error_pauses_where_it_is_set_so() -> None:
    """QEMU pauses for an error, not for a storage that hangs; else the guest sees it."""
    pause = "set disk-errors pause all\n"
    player = told(
        f"{pause}{UP}wait 30\nstorage fails owner disk\nwait 3\nexpect not engine running\n"
    )
    assert said(player, "an I/O error of its disk")
    told(f"{pause}{UP}wait 30\nstorage hangs owner disk\nwait 3\nexpect engine running\n")
    told(f"{UP}wait 30\nstorage fails owner disk\nwait 3\nexpect engine running\n")


def test_networks_fail_apart() -> None:
    """Each of one host or of all."""
    world = told(f"{UP}network bmc down\nnetwork migration down host1\nnetwork guests down host2\n"
                 "network storage down host3\nexpect moves 0\n").world  # fmt: skip
    one, two, three = world.hosts.values()
    assert not any(host.bmc_network_up for host in (one, two, three))
    assert world.no_migration == {1}
    assert (one.is_way_open, two.is_way_open) == (True, False)
    assert (two.storage.fault, three.storage.fault) == ("", "hang")
    world = told(f"network storage down\nnetwork storage up\n{UP}").world
    assert not any(host.storage.fault for host in world.hosts.values())
