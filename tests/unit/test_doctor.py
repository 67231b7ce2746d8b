# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent doctor` on a host that lacks nearly everything: each check stands for itself."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.doctor import peers
from broker.config.load import load
from broker.daemon.exit_codes import ExitCode
from tests.fakes.systemctl import put_systemctl
from tests.unit import commands


def run(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    done = commands.run("ha-agent", "--config", config, "doctor", *words)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def findings(config: Path) -> dict[str, list[dict[str, Any]]]:
    done = run(config, "--json")
    answer = json.loads(done.stdout)
    failed = [found for found in answer["checks"] if found["verdict"] == "fail"]
    assert answer["fit"] is (not failed)
    assert done.returncode == (ExitCode.FAILED if failed else ExitCode.OK)
    found: dict[str, list[dict[str, Any]]] = {}
    for check in answer["checks"]:
        found.setdefault(check["name"], []).append(check)
    return found


def test_every_check_is_made_and_every_failure_has_its_fix(site: Path) -> None:
    found = findings(site)
    assert {
        *("file", "definition", "lock-driver", "accelerator", "user", "sanlock", "watchdog"),
        *("clock", "storage", "daemons", "libvirt", "fence", "libvirt-guests"),
    } <= set(found)
    for checks in found.values():
        for check in checks:
            assert check["verdict"] in ("ok", "warn", "fail")
            assert (
                check["fix"]
                or check["verdict"] == "ok"
                or check["name"] in ("fence", "identity", "key")
            )
    storage = {check["text"].partition(":")[0]: check["verdict"] for check in found["storage"]}
    assert storage[f"{site.parent}/leases"] == "fail", "an empty file is no lockspace"
    assert found["accelerator"][0]["fix"] == "systemctl start virtqemud.socket"


@pytest.mark.parametrize(
    ("lines", "is_told"),
    [
        ('migration-uri = "qemu+ssh://root@{host}/system"', True),
        ('migration-uri = "qemu+ssh://root@{host}/system"\nmigration-tls = true', False),
        ('migration-uri = "qemu+tls://{host}/system"', False),
    ],
)
def test_memory_that_would_cross_the_network_in_plain(
    site: Path, lines: str, is_told: bool
) -> None:
    text = site.read_text()
    assert "[libvirt]" in text
    site.write_text(text.replace("[libvirt]", f"[libvirt]\n{lines}"))
    told = [each for each in findings(site).get("libvirt", []) if "in plain" in each["text"]]
    assert len(told) == int(is_told)
    assert all("libvirt.migration-tls = true" in each["fix"] for each in told)


@pytest.mark.parametrize(
    ("text", "verdict"), [('lock_manager = "sanlock"', "ok"), ('lock_manager = "lockd"', "fail")]
)
def test_the_lock_driver(site: Path, text: str, verdict: str) -> None:
    (site.parent / "qemu.conf").write_text(text + "\n")
    (check, *_) = findings(site)["lock-driver"]
    assert check["verdict"] == verdict
    assert (verdict == "ok") == (check["fix"] == "")
    if verdict == "fail":
        assert f"echo 'lock_manager = \"sanlock\"' >> {site.parent}/qemu.conf" in check["fix"]


def test_what_keeps_the_other_vms_of_the_host_from_starting(site: Path) -> None:
    conf = site.parent / "qemu-sanlock.conf"
    (_, found) = findings(site)["lock-driver"]
    assert found["verdict"] == "warn"
    assert f"echo 'require_lease_for_disks = 0' >> {conf}" in found["fix"]
    conf.write_text("require_lease_for_disks = 0\n")
    assert [found["verdict"] for found in findings(site)["lock-driver"]] == ["ok"]


def test_a_storage_that_is_away_is_one_failure_and_ends_nothing(site: Path) -> None:
    (site.parent / "whiteboard").unlink()
    found = findings(site)
    assert found["storage"][0]["verdict"] == "fail"
    assert "check the path and that its file system is mounted" in found["storage"][0]["text"]
    assert "libvirt" in found, "the checks after it were made"


def test_for_people_the_last_line_is_the_verdict(site: Path) -> None:
    done = run(site)
    assert done.returncode == ExitCode.FAILED
    assert done.stdout.splitlines()[-1].startswith("NOT FIT: ")
    site.write_text("[hosts]\n")
    done = run(site)
    assert "unknown key hosts; did you mean host?" in done.stdout


@pytest.mark.parametrize(
    ("active", "enabled", "verdict", "says"),
    [
        ("inactive inactive", "disabled disabled", "warn", "this host protects no VM yet"),
        ("inactive inactive", "enabled enabled", "fail", "though the daemons are to run here"),
        ("failed failed", "enabled disabled", "fail", "though the daemons are to run here"),
        ("activating active", "disabled disabled", "fail", "though the daemons are to run here"),
    ],
)
def test_a_host_whose_daemons_should_run_and_do_not_is_not_fit(
    site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    active: str,
    enabled: str,
    verdict: str,
    says: str,
) -> None:
    put_systemctl(tmp_path, monkeypatch, active=active, enabled=enabled)
    monkeypatch.setattr(peers, "SYSTEMD", tmp_path)
    ((found, text, fix),) = peers.daemons(load(str(site)))
    assert found == verdict and says in text and "systemctl" in fix


@pytest.mark.parametrize(
    ("answer", "says", "fix"),
    [
        (b"", "is ha-broker running?", "systemctl status"),
        # Root was told to type `sudo ha-agent doctor` for these two.
        (
            b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
            "ha-broker: ",
            "systemctl restart ha-broker",
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            "does not fit",
            "systemctl restart ha-broker",
        ),
    ],
)
def test_a_broker_that_is_there_and_gives_no_answer_of_use_is_not_fit(
    site: Path, tmp_path: Path, answer: bytes, says: str, fix: str
) -> None:
    def hang_up() -> None:
        connection, _ = server.accept()
        with connection:
            if answer:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "broker.sock"))
        server.listen()
        thread = threading.Thread(target=hang_up)
        thread.start()
        ((found, text, typed),) = peers.daemons(load(str(site)))
        thread.join()
    assert found == "fail" and says in text and typed.startswith(fix)


def test_without_systemd_nobody_knows_whether_they_should_run(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "SYSTEMD", tmp_path / "none")
    ((found, _, fix),) = peers.daemons(load(str(site)))
    assert (found, fix) == ("warn", "start ha-broker and ha-agent")
