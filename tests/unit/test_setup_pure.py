# SPDX-License-Identifier: LGPL-2.1-or-later
"""Set-up without effects: keys in a commented file, a VM's definition made fit, the answers."""

from __future__ import annotations

import re
import runpy
import tomllib
import uuid
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.setup import written
from agent.setup.answers import read_answers
from agent.setup.toml_text import Value, with_keys
from agent.terminal.errors import CommandError
from agent.vm.imported import imported
from broker.config.sections import StorageSection

DOCS = Path(__file__).parents[2] / "docs"
STORAGE = StorageSection(whiteboard="/s/whiteboard", leases="/s/leases")
XML = "<domain><name>vm</name><devices><interface><source bridge='br0'/></interface></devices>{}"

#: What has a meaning in TOML or JSON, and some letters.
TEXT = st.text("aé #[]='\"\\\n\t{},.")


# --- keys in a commented file -------------------------------------------------------------------


def test_in_the_packages_file_every_key_goes_to_its_table_and_no_comment_is_lost() -> None:
    old: str = runpy.run_path(str(DOCS / "generate_config.py"))["rendered"]()
    text = with_keys(
        old,
        {"host.id": 3, "storage.io-timeout": 5, "notify.smtp.server": "m", "fence.timeout": 2.5},
    )
    found = tomllib.loads(text)
    assert found["host"] == {"id": 3}
    assert found["storage"] == {"io-timeout": 5}
    assert found["notify"]["smtp"] == {"server": "m"}
    assert found["fence"] == {"timeout": 2.5}
    assert len(text.splitlines()) == len(old.splitlines()), "lines are changed, none comes or goes"
    assert with_keys(text, {"host.id": 3}) == text


def test_a_new_configuration_is_the_commented_one_filled_in_and_an_old_one_stays_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commented = tmp_path / "share.toml"
    commented.write_text(runpy.run_path(str(DOCS / "generate_config.py"))["rendered"]())
    monkeypatch.setattr(written, "COMMENTED", commented)
    files = written.Files(tmp_path / "ha-agent.toml")
    values: dict[str, Value | None] = {
        "host.id": 3,
        "storage.whiteboard": "/s/whiteboard",
        "storage.leases": "/s/leases",
    }
    written.config_step(files, values).act()
    made = files.text()
    assert len(made.splitlines()) == len(commented.read_text().splitlines())
    assert files.host_id() == 3

    commented.write_text("# of a later version\n")
    again = written.config_step(files, values)
    assert again.look() is not None, "there is nothing to be done"
    written.config_step(files, {**values, "host.id": 4}).act()
    assert files.text() == made.replace("\nid = 3\n", "\nid = 4\n")


def test_a_key_is_taken_away_by_a_comment_sign() -> None:
    text = with_keys('[host]\nid = 1\nname = "a"\n[b]\nname = "c"\n', {"host.name": None})
    assert tomllib.loads(text) == {"host": {"id": 1}, "b": {"name": "c"}}
    assert '#name = "a"' in text
    assert with_keys(text, {"host.name": None, "host.other": None}) == text


def test_a_top_level_key_stands_before_all_tables() -> None:
    text = with_keys('[fence-passwords]\n2 = "x"\n', {"cluster-key": "ab"})
    assert tomllib.loads(text) == {"cluster-key": "ab", "fence-passwords": {"2": "x"}}


@given(
    st.dictionaries(
        st.sampled_from(["a.k", "a.l", "b.k", "c.d.k", "top"]),
        st.one_of(st.integers(), st.booleans(), TEXT, st.tuples(TEXT)),
    )
)
def test_what_is_set_is_read(values: dict[str, bool | int | float | str | tuple[str, ...]]) -> None:
    text = with_keys('[a]\n#k = 1\nl = "x"\n\n[b]\n# k, a comment\n', dict(values))
    found = tomllib.loads(text)
    for name, value in values.items():
        place = found
        *tables, key = name.split(".")
        for table in tables:
            place = place[table]
        assert place[key] == (list(value) if isinstance(value, tuple) else value)


#: Valid files that say the same in another way, or hold what only looks like a key.
FORMS = {
    "dotted": 'host.id = 1\nhost.name = "a"\nstorage.x = 1\n',
    "inline": 'host = {id = 1, name = "a"}\n',
    "quoted": '["host"]\n"id" = 1\n',
    "spaced": "[ host ]\n  id=1 # mine\n\n[b]\nid = 2\n",
    "list over lines": '[host]\nid = 1\nx = [\n  "a", # id = 3\n  "b",\n]\n',
    "text that looks so": '[b]\nx = """\n[host]\nid = 5\n#id = 6\n"""\n[host]\nid = 1\n',
    "text over lines": '[host]\nid = 1\nname = """a\nb"""\n',
    "devices first": "[[fence.device]]\nhost = 1\n\n[host]\nid = 1\n",
    "in two places": "[host]\nid = 1\n[b]\nx=1\n[host.sub]\ny=2\n",
    "an example below": '[host]\n#id = 4\n#[[host.dev]]\n#name = "x"\n[c]\n',
    "lines of DOS": "[host]\r\nid = 1\r\n",
    "no last line end": "[host]\nid = 1",
    "empty": "",
}


@pytest.mark.parametrize("form", FORMS)
def test_in_whatever_way_a_file_is_written_the_keys_meant_are_changed(form: str) -> None:
    wanted = tomllib.loads(FORMS[form])
    wanted.setdefault("host", {}).update(id=7, name="n")
    wanted["top"] = "t"
    wanted.setdefault("b", {})["new"] = ["q"]
    wanted.setdefault("c", {}).setdefault("d", {})["k"] = True
    text = with_keys(
        FORMS[form],
        {"host.id": 7, "host.name": "n", "top": "t", "b.new": ("q",), "c.d.k": True},
    )
    assert tomllib.loads(text) == wanted
    del wanted["host"]["name"]
    assert tomllib.loads(with_keys(text, {"host.name": None})) == wanted
    assert ("# mine" in text) == ("# mine" in FORMS[form]), "a comment behind a value stays"


@pytest.mark.parametrize("text", ["host = 3\n", "[[host]]\nid = 1\n", "host = [\n"])
def test_a_file_without_a_place_for_the_key_is_refused_and_not_broken(text: str) -> None:
    with pytest.raises(CommandError, match=r"host\.id cannot be set|is not TOML"):
        with_keys(text, {"host.id": 7})


# --- the VM's definition --------------------------------------------------------------------------


def lease_of(xml: str) -> tuple[str | None, str | None, dict[str, str]]:
    (lease,) = ElementTree.fromstring(xml).findall("devices/lease")
    target = lease.find("target")
    assert target is not None
    return lease.findtext("lockspace"), lease.findtext("key"), target.attrib


def test_a_definition_gets_its_lease_and_a_uuid() -> None:
    found = imported(XML.format("</domain>"), "x", STORAGE, 1 << 20)
    assert (found.name, found.bridge) == ("vm", "br0")
    wanted = ("hosted-engine", "engine", {"path": "/s/leases", "offset": "1048576"})
    assert lease_of(found.xml) == wanted
    made = ElementTree.fromstring(found.xml).findtext("uuid") or ""
    assert uuid.UUID(made) and any(made in note for note in found.notes)
    assert imported(found.xml, "x", STORAGE, 1 << 20).notes == (), "again: nothing to change"


def test_a_lease_of_another_place_is_replaced_and_never_a_second_one_beside_it() -> None:
    other = StorageSection(whiteboard="/o/whiteboard", leases="/o/leases")
    first = imported(XML.format("</domain>"), "x", other, 8 << 20).xml
    assert lease_of(imported(first, "x", STORAGE, 1 << 20).xml)[2]["path"] == "/s/leases"


def test_what_is_not_ours_in_a_definition_stays() -> None:
    xml = (
        "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' type='kvm' id='7'>"
        "<name>vm</name><uuid>6e67696e-0000-4000-8000-000000000001</uuid><devices/>"
        "<qemu:commandline><qemu:arg value='-x'/></qemu:commandline></domain>"
    )
    made = imported(xml, "x", STORAGE, 1 << 20).xml
    assert '<qemu:arg value="-x"' in made and 'type="kvm"' in made
    assert "id=" not in made, "of one run on one host"


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("<domain", "is not XML"),
        ("<network/>", "not a libvirt <domain>"),
        ("<domain><devices/></domain>", "needs <name> and <devices>"),
        ("<domain><name>a</name></domain>", "needs <name> and <devices>"),
    ],
)
def test_what_is_no_definition_is_refused_by_name(xml: str, said: str) -> None:
    with pytest.raises(CommandError, match=f"the-file: .*{said}"):
        imported(xml, "the-file", STORAGE, 1 << 20)


# --- the answers file ----------------------------------------------------------------------------


def test_an_answers_file_has_the_options_as_keys(tmp_path: Path) -> None:
    file = tmp_path / "answers.toml"
    file.write_text('storage = "/s"\nio-timeout = 5\nnetwork-targets = ["10.0.0.1"]\n')
    found = read_answers(str(file))
    assert (found.storage, found.io_timeout, found.network_targets) == ("/s", 5, ("10.0.0.1",))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("storge = 'x'", "unknown key storge; did you mean storage?; its keys are storage"),
        ("io-timeout = 'x'", "io-timeout: must be a whole number, not text; its keys"),
        ("tls = 'none'", "tls: must be own, site or ssh; its keys are storage"),
        ("storage =", "is not TOML"),
    ],
)
def test_an_answers_file_that_does_not_fit_names_itself(
    tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "answers.toml"
    file.write_text(text)
    with pytest.raises(CommandError, match=re.escape(f"answers.toml: {said}")):
        read_answers(str(file))
