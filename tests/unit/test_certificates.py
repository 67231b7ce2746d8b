# SPDX-License-Identifier: LGPL-2.1-or-later
"""The cluster's own certificates: who is let in by them, when they are made anew, and that a
site's own are left alone."""

from __future__ import annotations

import datetime
import json
import os
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from agent.certificates.authority import (
    AUTHORITY_LASTS,
    CLOCKS_DIFFER,
    HOST_LASTS,
    RENEW_WITHIN,
    Issued,
    NoAuthority,
    certificate_of,
    issue,
    new_authority,
    why_not_good,
)
from agent.certificates.of_host import HostCertificate
from agent.certificates.places import AUTHORITY_FILE
from agent.setup.invite import offered
from agent.setup.written import Files
from agent.terminal.errors import CommandError
from broker.config.host_certificates import all_ends, ends_of, shown_files
from broker.config.load import load
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode
from broker.wire.limits import SOON_DAYS
from tests.unit import commands

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
CONFIG = """[host]
id = {id}
name = "{name}"
[storage]
whiteboard = "/nowhere/whiteboard"
leases = "/nowhere/leases"
[libvirt]
migration-uri = "qemu+tls://{{host}}/system"
pki-dir = "{folder}/pki"
[api]
listen = ["192.0.2.{id}:8765"]
"""


def contexts(
    folder: Path, authority: bytes, issued: Issued
) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The contexts of a server and of a client that both demand the other's certificate."""
    folder.mkdir()
    for name, text in (("ca", authority), ("cert", issued.certificate), ("key", issued.key)):
        (folder / name).write_bytes(text)
    found = []
    for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(side)
        context.load_cert_chain(folder / "cert", folder / "key")
        context.load_verify_locations(folder / "ca")
        context.verify_mode = ssl.CERT_REQUIRED
        found.append(context)
    return found[0], found[1]


def talk(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    """A handshake in memory; ssl.SSLError where one side refuses the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname=name),
    )
    for _ in range(6):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for side in sides:
        side.do_handshake()
        assert side.getpeercert()


def test_members_let_each_other_in_by_each_of_their_names_and_nobody_else(tmp_path: Path) -> None:
    ours = new_authority("ha", NOW)
    made = issue(ours, "host1", ("host1", "10.0.0.1", "2001:db8::1"), NOW)
    server, client = contexts(tmp_path / "a", certificate_of(ours), made)
    for name in ("host1", "10.0.0.1", "2001:db8::1"):
        talk(server, client, name)
    with pytest.raises(ssl.SSLError):
        talk(server, client, "host2")
    # Another cluster's authority has the same name and another key.
    theirs = new_authority("ha", NOW)
    stranger = issue(theirs, "host1", ("host1",), NOW)
    _, other = contexts(tmp_path / "b", certificate_of(ours), stranger)
    with pytest.raises(ssl.SSLError):
        talk(server, other, "host1")


def test_a_host_s_certificate_makes_no_other_one(tmp_path: Path) -> None:
    ours = new_authority("ha", NOW)
    made = issue(ours, "host1", ("host1",), NOW)
    found = x509.load_pem_x509_certificate(made.certificate)
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(NoAuthority):
        issue(made.key + made.certificate + certificate_of(ours), "x", ("x",), NOW - 30 * DAY)


@pytest.mark.parametrize("text", [b"", b"x", new_authority("ha", NOW)[:-200]])
def test_what_is_no_authority_makes_none(text: bytes) -> None:
    with pytest.raises(NoAuthority):
        issue(text, "host1", ("host1",), NOW)


def test_when_a_certificate_is_made_anew() -> None:
    ours = new_authority("ha", NOW)
    made = issue(ours, "host1", ("host1", "10.0.0.1"), NOW).certificate

    def why(names: tuple[str, ...] = ("host1",), by: bytes = ours, later: int = 0) -> str:
        return why_not_good(made, by, names, NOW + later * DAY)

    assert why() == ""
    due = (HOST_LASTS - RENEW_WITHIN).days
    assert why(later=due - 1) == ""
    assert why(later=due + 1).startswith("it ends in ")
    assert why(("host1", "10.0.0.2")) == "it lacks the name 10.0.0.2"
    assert why(by=new_authority("ha", NOW)) == "another authority made it"
    assert why_not_good(b"x", ours, (), NOW) == "it is no certificate"
    assert RENEW_WITHIN.days > SOON_DAYS, "a trouble is told when renewals have failed for long"


def test_no_certificate_outlives_its_authority_and_its_last_one_is_not_made_again_and_again() -> (
    None
):
    ours = new_authority("ha", NOW)
    late = NOW + AUTHORITY_LASTS - 10 * DAY
    made = issue(ours, "host1", ("host1",), late).certificate
    assert why_not_good(made, ours, ("host1",), late) == ""


def test_a_clock_that_is_behind_does_not_refuse_what_was_just_made() -> None:
    found = x509.load_pem_x509_certificate(certificate_of(new_authority("ha", NOW)))
    assert found.not_valid_before.replace(tzinfo=datetime.UTC) <= NOW - CLOCKS_DIFFER + DAY / 24


# --- on a host ------------------------------------------------------------------------------


def of(folder: Path, number: int = 1) -> HostCertificate:
    folder.mkdir(exist_ok=True)
    path = folder / "ha-agent.toml"
    path.write_text(CONFIG.format(id=number, name=f"host{number}", folder=folder))
    return HostCertificate(load(str(path)), folder)


def config_of(host: HostCertificate) -> Config:
    return host.config


def test_all_files_are_there_with_their_modes_and_a_second_time_nothing_changes(
    tmp_path: Path,
) -> None:
    host = of(tmp_path)
    step = host.step(of_join=False)
    assert step.look() is None
    said = step.act()
    assert "host1" in said and "192.0.2.1" in said
    modes = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777)
        for path in tmp_path.rglob("*.*")
        if path.is_file() and path.suffix in (".pem", ".key")
    }
    assert modes.pop(AUTHORITY_FILE) == "0o600"
    keys = {name: mode for name, mode in modes.items() if "key" in name}
    assert keys.pop("pki/libvirt/private/serverkey.pem") == "0o600"
    assert set(keys.values()) == {"0o640"} and len(keys) == 4
    assert {mode for name, mode in modes.items() if "key" not in name} == {"0o644"}
    assert [each.problem for each in all_ends(config_of(host))] == [""] * 5
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = step.look()
    assert again is not None and again.startswith("this host's ends in 36")
    (tmp_path / "pki/qemu/server-cert.pem").unlink()
    assert step.look() is None
    step.act()
    assert (tmp_path / AUTHORITY_FILE).read_bytes() == before[tmp_path / AUTHORITY_FILE]

    # libvirt keeps none of them after `leave --undo`: a host that had left went on letting the
    # members in.
    undo = host.undo_step()
    assert undo.look() is None
    assert undo.act() == f"those below {tmp_path}/pki are removed"
    left = {str(path.relative_to(tmp_path)) for path in before if path.exists()}
    assert left == {"ha-agent.toml", AUTHORITY_FILE, "host.pem", "host.key"}
    assert undo.look() == f"{tmp_path}/pki: nothing of ours"


def test_a_site_s_authority_is_left_alone(tmp_path: Path) -> None:
    host = of(tmp_path)
    theirs = tmp_path / "pki/CA/cacert.pem"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("a site's")
    with pytest.raises(CommandError, match=r"is left alone; to use .*: --tls site"):
        host.step(of_join=False).look()
    with pytest.raises(CommandError, match="move it away and join again"):
        host.step(of_join=True).look()
    assert host.undo_step().look() == f"{tmp_path}/pki: nothing of ours"
    done = commands.run("ha-agent", "--config", str(tmp_path / "ha-agent.toml"), *RENEW)
    assert done.returncode == 0 and "nothing is renewed" in done.stdout
    assert theirs.read_text() == "a site's"


RENEW = ("certificates", "renew")


def test_a_renewal_is_due_with_a_third_left_or_when_it_is_asked_for(tmp_path: Path) -> None:
    host = of(tmp_path)
    host.make(may_found=True)
    words = ("--config", str(tmp_path / "ha-agent.toml"))
    first = (tmp_path / "host.pem").read_bytes()
    done = commands.run("ha-agent", *words, *RENEW)
    assert done.stdout.startswith("not yet: ") and (tmp_path / "host.pem").read_bytes() == first
    # A certificate of this host, made eleven months ago.
    past = NOW - 330 * DAY
    old = HostCertificate(host.config, tmp_path, lambda: past)
    (tmp_path / AUTHORITY_FILE).unlink()
    (tmp_path / "pki/CA/cacert.pem").unlink()
    old.make(may_found=True)
    done = commands.run("ha-agent", *words, "certificates", "show", "--json")
    days = [each["days"] for each in json.loads(done.stdout)["certificates"]]
    assert done.returncode == 0 and sorted(days)[0] in (34, 35)
    done = commands.run("ha-agent", *words, *RENEW, "--json")
    answer = json.loads(done.stdout)
    assert answer["renewed"] and "it ends in 3" in answer["text"], answer
    assert not json.loads(commands.run("ha-agent", *words, *RENEW, "--json").stdout)["renewed"]


def test_a_certificate_that_ends_soon_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    host = of(tmp_path)
    past = NOW - 360 * DAY
    HostCertificate(host.config, tmp_path, lambda: past).make(may_found=True)
    (tmp_path / "pki/qemu/client-cert.pem").write_text("x")
    done = commands.run(
        "ha-agent", "--config", str(tmp_path / "ha-agent.toml"), "certificates", "show"
    )
    assert done.returncode == ExitCode.FAILED
    assert "holds no certificate in PEM" in done.stdout and "ends in 4 days" in done.stdout
    assert ends_of(tmp_path / "none").problem == "No such file or directory"


def test_only_files_that_count_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "ha-agent.toml"
    text = CONFIG.format(id=1, name="host1", folder=tmp_path)
    path.write_text(text.replace("qemu+tls", "qemu+ssh"))
    assert shown_files(load(str(path))) == []
    path.write_text(
        text + 'tls-listen = ["192.0.2.1:8443"]\ncertificate = "/c.pem"\nprivate-key = "/k.pem"\n'
    )
    assert shown_files(load(str(path)))[-1] == Path("/c.pem")


@pytest.mark.skipif(os.geteuid() != 0, reason="a key is root's")
def test_an_invitation_brings_the_authority(tmp_path: Path) -> None:
    host = of(tmp_path)
    (tmp_path / "secrets.toml").write_text(f'cluster-key = "{"0" * 64}"\n')
    (tmp_path / "engine.xml").write_text("<domain/>")
    path = tmp_path / "ha-agent.toml"
    path.write_text(
        f'{path.read_text()}[vm]\ndefinition = "{tmp_path}/engine.xml"\n'
        f'[daemon]\nsecrets = "{tmp_path}/secrets.toml"\n'
    )
    assert offered(Files(path)).authority == ""
    host.make(may_found=True)
    assert offered(Files(path)).authority.encode() == (tmp_path / AUTHORITY_FILE).read_bytes()
