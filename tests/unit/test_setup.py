# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent init` as a user runs it, on real files with a real sanlock daemon of its own."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import tomllib
from pathlib import Path

import pytest

from agent.setup.toml_text import with_keys
from broker.daemon.exit_codes import ExitCode
from broker.lockspace.delta_leases import read_lease_volume
from broker.lockspace.rejoin import own_name
from broker.whiteboard.identity import VolumeKind, decode, read
from broker.whiteboard.layout import FENCE_LOG_FIRST, SLOT_MAX
from broker.whiteboard.slot import SlotReport, encode_slot
from broker.whiteboard.volume import Volume
from scoring.vm_facts import EngineStatus, Health, VmStatus
from tests.unit.setup_host import AGENT, Host, daemon, host, report

__all__ = ["daemon", "host"]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("sanlock") is None, reason="needs root and sanlock"
)


MADE = ("whiteboard", "leases", "definition", "cluster-key", "config")


def test_init_makes_all_and_again_it_changes_nothing(host: Host) -> None:
    made = host.verdicts()
    # Where this machine has no network to speak of, nothing is to be opened in a firewall.
    assert made.pop("heartbeat", "ok") == "ok"
    steps = {"lock-driver": "ok", "sanlock-name": "done"}
    assert made == steps | dict.fromkeys((*MADE, "certificates"), "done")
    assert host.named.read_text() == f"our_host_name = {own_name(str(host.system_uuid))}\n"
    text = host.config.read_text()
    assert text.startswith("# mine\n"), "comments stay"
    config = tomllib.loads(text)
    assert (config["host"]["id"], config["vm"]["name"]) == (1, "vm")
    with Volume(host.shared / "leases") as volume:
        head = read_lease_volume(volume)
    assert head is not None
    assert (head.lockspace, head.io_timeout) == (f"ha-{config['cluster']['id']}", 1)
    assert config["storage"]["lockspace"] == head.lockspace
    assert set(head.resources.values()) == {"engine", "fence"}
    with Volume(host.shared / "whiteboard") as volume:
        assert volume.size_slots == SLOT_MAX + 1
    secrets = host.config.with_name("secrets.toml")
    assert secrets.stat().st_mode & 0o777 == 0o640
    assert len(bytes.fromhex(tomllib.loads(secrets.read_text())["cluster-key"])) == 32
    checked = json.loads(host.run("config", "check", "--json").stdout)["checks"]
    assert [c for c in checked if c["verdict"] == "fail"] == []

    before = host.files()
    assert set(host.verdicts().values()) == {"ok"}
    assert host.files() == before
    refused = host.init("--host-id", "2")
    assert refused.returncode == ExitCode.REFUSED
    assert "configured already, with 1 for host-id" in refused.stderr


@pytest.mark.parametrize("name", ["whiteboard", "leases", "registry"])
def test_a_configured_host_whose_volume_is_away_makes_no_other(host: Host, name: str) -> None:
    """Most likely nothing is mounted there: two clusters would be the end of all safety."""
    host.verdicts("--vms", "3")
    (host.shared / name).unlink()
    done = host.init("--vms", "3")
    assert done.returncode == ExitCode.STORAGE
    assert f"{name}: is not there; mount the storage" in done.stderr
    assert not (host.shared / name).exists()


@pytest.mark.parametrize("verb", [("init", "--yes"), ("storage", "grow", "--vms", "4")])
def test_a_registry_whose_header_is_lost_is_not_written_over(
    host: Host, verb: tuple[str, ...]
) -> None:
    host.verdicts("--vms", "3")
    path = host.shared / "registry"
    with path.open("r+b") as file:
        file.write(bytes(4096))
        file.seek(8192)
        file.write(b"a record")
    before = path.read_bytes()
    done = host.run(*verb)
    assert done.returncode == ExitCode.STORAGE, done.stdout
    assert f"{path}: its header is empty; mount the storage, or if it is lost" in done.stderr
    assert path.read_bytes() == before


def test_who_is_asked_answers_what_is_not_said_and_may_take_the_defaults(host: Host) -> None:
    """On a terminal; enter takes what stands in brackets."""
    lines = [
        *(f"{host.shared}", f"{host.folder}/vm.xml", "mine", "", "192.0.2.1", "-"),
        *("http://192.0.2.2/x", "-", "y"),
    ]
    ours, its = os.openpty()
    with subprocess.Popen(
        [AGENT, "init", "--io-timeout", "1", "--local"],
        env=host._environment,
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(its)
        os.write(ours, "".join(f"{line}\n" for line in lines).encode())
        said, wrong = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == ExitCode.OK, said + wrong
    assert "Name of the cluster [ha]: " in said
    config = tomllib.loads(host.config.read_text())
    assert config["cluster"]["name"] == "mine"
    assert config["network"] == {"bridge": "", "test": "ping", "targets": ["192.0.2.1"]}
    assert (config["api"]["listen"], config["libvirt"]["migration-uri"]) == ([], "")
    assert config["health"]["url"] == "http://192.0.2.2/x"


def test_who_says_no_has_changed_nothing(host: Host) -> None:
    before = host.files()
    ours, its = os.openpty()
    with subprocess.Popen(
        [AGENT, "init", "--storage", host.shared, "--domain", f"{host.folder}/vm.xml"],
        env=host._environment,
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        os.close(its)
        os.write(ours, b"\n\n\n-\n\n\nn\n")
        _, wrong = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == ExitCode.REFUSED
    assert "nothing was done" in wrong
    assert host.files() == before


def test_a_dry_run_changes_nothing(host: Host) -> None:
    before = host.files()
    name = {"lock-driver": "ok", "sanlock-name": "would"}
    assert host.verdicts("--dry-run") == name | dict.fromkeys((*MADE, "certificates"), "would")
    assert not host.named.exists()
    assert host.files() == before


@pytest.mark.parametrize("made", range(len(MADE)))
def test_an_init_that_broke_off_is_gone_on_with(host: Host, made: int) -> None:
    """Whatever the first steps of it had made is kept, and the rest is made."""
    host.verdicts()
    places = [host.shared / "whiteboard", host.shared / "leases"]
    places += [host.config.with_name(name) for name in ("engine.xml", "secrets.toml")]
    for path in places[made:]:
        path.unlink()
    host.seed()
    kept = {path: path.read_bytes() for path in places[:made]}
    verdicts = host.verdicts()
    assert [verdicts[name] for name in MADE] == ["ok"] * made + ["done"] * (len(MADE) - made)
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_full_disk_leaves_nothing_half_made(host: Host) -> None:
    done = host.run(
        "init",
        "--storage",
        str(host.shared),
        *host.others(),
        enter=(
            *("unshare", "-m", "sh", "-c"),
            f'mount -t tmpfs -o size=1m none {host.shared} && "$@"; code=$?;'
            f" ls -A {host.shared}; exit $code",
            "-",
        ),
    )
    assert done.returncode == ExitCode.STORAGE, done.stderr
    assert "No space left on device; free space there" in done.stderr
    assert done.stdout == "", "nothing was done, and no file is left there"
    assert "id" not in tomllib.loads(host.config.read_text())["host"]


#: Memory by NUMA cells alone: libvirt adds them up, the agent does not guess.
NUMA = """<domain type='kvm'><name>vm</name><uuid>6e67696e-0000-4000-8000-0000000000a2</uuid>
<maxMemory slots='16' unit='GiB'>64</maxMemory><cpu mode='host-model'><numa>
<cell id='0' cpus='0-1' memory='2' unit='GiB'/></numa></cpu><devices/></domain>"""


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("trouble", "code", "said"),
    [
        ("sanlock", ExitCode.LOCKSPACE, "check that sanlock runs"),
        ("numa", ExitCode.DEFINITION, "<memory>"),
        ("config", ExitCode.FILE, "cannot be written"),
        ("sanlock.conf", ExitCode.FILE, "sanlock.conf: cannot be written"),
        ("leases folder", ExitCode.STORAGE, "its folder is not there"),
    ],
)
def test_what_init_would_fail_at_is_found_before_anything_is_made(
    host: Host, trouble: str, code: ExitCode, said: str, more: tuple[str, ...]
) -> None:
    words = [*host.init_words(), *more]
    enter: tuple[str, ...] = ()
    match trouble:
        case "sanlock":
            host._environment["SANLOCK_RUN_DIR"] = str(host.folder / "nowhere")
        case "numa":
            (host.folder / "vm.xml").write_text(NUMA)
        case "config":
            enter = read_only(host.config.parent)
        case "sanlock.conf":
            host.named = host.folder / "read-only" / "sanlock.conf"
            host.named.parent.mkdir()
            host.seed()
            enter = read_only(host.named.parent)
        case _:
            words += ["--leases", str(host.folder / "away" / "leases")]
    before = host.files()
    done = host.run("init", *words, enter=enter)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in done.stderr
    assert host.files() == before and not host.named.exists()


@pytest.mark.parametrize("words", [("init", "--yes"), ("invite",), ("leave",), ("vm", "list")])
def test_a_configuration_that_cannot_be_read_has_one_code_in_every_command(
    host: Host, words: tuple[str, ...]
) -> None:
    """A folder in its place: root may read any file."""
    host.config.unlink(missing_ok=True)
    host.config.mkdir(parents=True)
    done = host.run(*words, "--json")
    assert json.loads(done.stdout)["error"]["code"] == "not-configured"
    assert (done.returncode, done.stderr.count("cannot be read")) == (ExitCode.CONFIG, 1)


def read_only(folder: Path) -> tuple[str, ...]:
    """What runs a command that cannot write there."""
    mount = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    return ("unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "-")


def test_what_was_there_is_not_written_over(host: Host) -> None:
    (host.shared / "whiteboard").write_bytes(b"precious" * 4096)
    before = host.files()
    done = host.init()
    assert done.returncode == ExitCode.REFUSED
    assert "holds something else than a whiteboard" in done.stderr
    (host.shared / "whiteboard").unlink()
    (host.shared / "leases").write_bytes(b"precious" * 4096)
    done = host.init()
    assert done.returncode == ExitCode.REFUSED
    assert "holds something else than a lockspace" in done.stderr
    del before["whiteboard"]
    assert host.files() == {**before, "leases": b"precious" * 4096}
    once = host.init("--overwrite")
    assert once.returncode == ExitCode.REFUSED
    assert "to destroy that: --overwrite --overwrite" in once.stderr
    assert host.verdicts("--overwrite", "--overwrite")["leases"] == "done"


def test_a_slot_that_changes_is_never_written_over(host: Host) -> None:
    host.verdicts()
    host.seed()
    path = host.shared / "whiteboard"
    with Volume(path) as volume:
        volume.write_slot(2, report(1))
    done = host.init()
    assert done.returncode == ExitCode.REFUSED
    assert "holds slots of hosts 2 (other); to add this host to it: ha-agent join" in done.stderr
    with Volume(path) as volume, host_command(host, "--overwrite") as process:
        beat = 1
        while process.poll() is None:
            beat += 1
            volume.write_slot(2, report(beat))
            time.sleep(0.1)
        _, said = process.communicate()
    assert process.returncode == ExitCode.REFUSED
    assert "is in use: host 2 (other) writes its slot" in said


def host_command(host: Host, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [AGENT, "init", "--storage", host.shared, *host.others(), *more],
        env=host._environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_lockspace_that_is_renewed_is_never_written_over(
    host: Host, daemon: dict[str, str]
) -> None:
    host.verdicts()
    name = tomllib.loads(host.config.read_text())["storage"]["lockspace"]
    lockspace = f"{name}:5:{host.shared}/leases:0"
    client = ["sanlock", "client"]
    subprocess.run(
        [*client, "add_lockspace", "-s", lockspace, "-o", "1"],
        env=daemon,
        check=True,
        capture_output=True,
    )
    try:
        host.seed()
        done = host.init("--overwrite")
        assert done.returncode == ExitCode.REFUSED
        assert "is in use: host 5 renews its id" in done.stderr
        again = host.run("reinitialize-lockspace", "--yes")
        assert again.returncode == ExitCode.CONFIG, "not configured yet"
    finally:
        subprocess.run([*client, "rem_lockspace", "-s", lockspace], env=daemon, capture_output=True)


def test_who_joins_takes_neither_the_id_nor_the_name_of_the_member_that_never_ran(
    host: Host, tmp_path_factory: pytest.TempPathFactory, daemon: dict[str, str]
) -> None:
    host.verdicts("--migration-uri", "-", "--name", "first", "--listen", "192.0.2.1:8765")
    other = Host(tmp_path_factory.mktemp("other"), daemon)
    copies = str(host.config.parent)
    done = other.run("join", "--from", copies, "--host-id", "1")
    assert done.returncode == ExitCode.LOCKSPACE
    assert "host id 1 is another host's: the files in" in done.stderr
    assert "free are 2, 3, 4" in done.stderr
    try:
        other.config.write_text(host.config.read_text())  # as who copies it to its place does
        done = other.run("join", "--from", copies, "--json")
        assert done.returncode == ExitCode.OK, done.stderr
        config = tomllib.loads(other.config.read_text())
        assert config["host"] == {"id": 2}
        keys = [
            tomllib.loads(at.config.with_name("secrets.toml").read_text())["cluster-key"]
            for at in (host, other)
        ]
        assert keys[0] == keys[1]
        again = json.loads(other.run("join", "--from", copies, "--json").stdout)["steps"]
        assert {step["verdict"] for step in again} == {"ok"}

        # Another member cannot be reached, nor asked: said, and no reason not to be a member.
        away = "qemu+unix:///system?socket=/nowhere/{host}"
        text = with_keys(host.config.read_text(), {"libvirt.migration-uri": away})
        host.config.write_text(text)
        other.config.write_text(
            with_keys(other.config.read_text(), {"libvirt.migration-uri": away})
        )
        engine = EngineStatus(VmStatus.DOWN, Health.BAD, "off")
        with Volume(host.shared / "whiteboard") as volume:
            volume.write_slot(9, encode_slot(SlotReport(9, 1, 3400, engine, "ninth")))
        done = other.run("join", "--from", copies, "--json")
        assert done.returncode == ExitCode.OK, done.stderr
        there, here, port, own = json.loads(done.stdout)["steps"][-4:]
        assert (there["name"], there["verdict"]) == ("libvirt of ninth (id 9)", "warning")
        assert (here["name"], here["verdict"]) == ("ninth (id 9)", "warning")
        assert "it publishes no address (api.listen); type there: virsh -c" in here["text"]
        assert (port["name"], port["verdict"]) == ("heartbeat of ninth (id 9)", "warning")
        assert port["text"].startswith("publishes no port for heartbeats")
        assert (own["name"], own["verdict"]) == ("heartbeat", "ok")
        assert ":8766/udp; in its firewall: firewall-cmd --permanent" in own["text"]
        lines = other.run("join", "--from", copies).stdout.splitlines()
        assert [line.partition(" ")[0] for line in lines[-5:]] == [*["warning"] * 3, "ok", "next:"]
    finally:
        lockspace = f"hosted-engine:2:{host.shared}/leases:0"
        subprocess.run(["sanlock", "client", "rem_lockspace", "-s", lockspace], env=daemon)


def test_without_the_lock_driver_nothing_is_made(host: Host) -> None:
    host.qemu_conf.write_text('#lock_manager = "lockd"\n')
    done = host.init()
    assert done.returncode == ExitCode.LOCK_DRIVER
    assert "echo 'lock_manager = \"sanlock\"' >>" in done.stderr
    assert list(host.shared.iterdir()) == []


def test_a_lock_driver_that_would_stop_the_other_vms_is_refused(host: Host) -> None:
    host.sanlock_conf.unlink()
    done = host.init()
    assert done.returncode == ExitCode.LOCK_DRIVER
    assert f"echo 'require_lease_for_disks = 0' >> {host.sanlock_conf}" in done.stderr
    assert list(host.shared.iterdir()) == []
    host.sanlock_conf.write_text("#require_lease_for_disks = 0\n")
    host.qemu_conf.write_text("")
    both = host.init()
    assert "qemu.conf, then" in both.stderr and "qemu-sanlock.conf, then" in both.stderr
    # Who says so wants it so.
    host.qemu_conf.write_text('lock_manager = "sanlock"\n')
    host.sanlock_conf.write_text("require_lease_for_disks = 1\n")
    done = host.init("--dry-run")
    assert done.returncode == ExitCode.OK
    assert "asks other VMs for leases of all their disks" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("init", "--yes"), ExitCode.USAGE, "--storage is missing"),
        (("init", "--answers", "/none"), ExitCode.FILE, "/none: cannot be read"),
        (("init", "--storage", "/no/folder", "--yes", "--domain", "{xml}"),
         ExitCode.STORAGE, "its folder is not there"),
        (("init", "--storage", "{shared}", "--yes", "--domain", "/no.xml"),
         ExitCode.FILE, "/no.xml: cannot be read"),
        (("join", "--from", "/none"), ExitCode.FILE, "ha-agent invite --folder FOLDER"),
        (("leave",), ExitCode.CONFIG, "is missing"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line_with_the_next_step(
    host: Host, arguments: tuple[str, ...], code: ExitCode, said: str
) -> None:
    given = [
        word.format(xml=host.folder / "vm.xml", shared=host.shared) if "{" in word else word
        for word in arguments
    ]
    done = host.run(*given)
    assert said in done.stderr
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- which storage it is --------------------------------------------------------------------


def test_a_file_system_of_one_host_is_not_taken_unless_told(host: Host) -> None:
    done = host.run(*(word for word in ("init", *host.init_words()) if word != "--local"))
    assert done.returncode == ExitCode.REFUSED
    assert "a file system of this host alone; mount the shared storage there" in done.stderr
    assert not list(host.shared.iterdir())


def test_both_volumes_say_what_they_are_as_the_configuration_names_them(host: Host) -> None:
    host.verdicts()
    config = tomllib.loads(host.config.read_text())
    for kind, key in ((VolumeKind.WHITEBOARD, "whiteboard"), (VolumeKind.LEASES, "leases")):
        with Volume(host.shared / key, read_only=True) as volume:
            found = decode(read(volume, kind))
        assert found is not None
        assert (found.kind, found.cluster) == (kind, config["cluster"]["id"])
        assert found.volume == config["storage"][f"{key}-id"]
        assert abs(found.made_at - time.time()) < 60


def test_a_try_that_broke_off_before_the_configuration_is_taken_up(host: Host) -> None:
    host.verdicts()
    ids = tomllib.loads(host.config.read_text())["cluster"]["id"]
    host.seed()
    assert host.verdicts()["whiteboard"] == "ok"
    assert tomllib.loads(host.config.read_text())["cluster"]["id"] == ids


@pytest.mark.parametrize("name", ["whiteboard", "leases"])
@pytest.mark.parametrize(
    "command",
    [
        ("init",),
        ("leave",),
        ("clean-metadata", "7"),
        ("reinitialize-lockspace", "--yes"),
        ("join", "--from", "ETC"),
    ],
    ids=lambda words: words[0],
)
def test_no_command_touches_another_clusters_volume(
    host: Host,
    name: str,
    command: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    daemon: dict[str, str],
) -> None:
    host.verdicts()
    other = Host(tmp_path_factory.mktemp("other"), daemon)
    other.verdicts()
    shutil.copy(other.shared / name, host.shared / name)
    before = host.files()
    words = [str(host.config.parent) if word == "ETC" else word for word in command]
    done = host.run(*words, *(host.init_words() if command == ("init",) else ()))
    assert done.returncode == ExitCode.STORAGE, done.stderr
    theirs = tomllib.loads(other.config.read_text())["cluster"]["id"]
    assert f"{host.shared / name}: is {name} " in done.stderr
    assert theirs in done.stderr
    assert host.files() == before


def test_a_cluster_of_an_earlier_version_is_given_its_identity(
    host: Host, tmp_path_factory: pytest.TempPathFactory, daemon: dict[str, str]
) -> None:
    """While it runs: a small lease volume grows, and a second host takes the names over."""
    host.verdicts()
    named = ("cluster.id", "storage.whiteboard-id", "storage.leases-id")
    old = with_keys(host.config.read_text(), dict.fromkeys(named))
    host.config.write_text(old)
    os.truncate(host.shared / "leases", 3 << 20)
    os.truncate(host.shared / "whiteboard", FENCE_LOG_FIRST * 4096)
    assert host.run("config", "check").returncode == ExitCode.OK, "it works as before"
    second = Host(tmp_path_factory.mktemp("second"), daemon)
    second.config.write_text(old.replace("id = 1", "id = 2", 1))
    done = host.run("init", "--identity", "--json")
    assert done.returncode == ExitCode.OK, done.stderr
    assert [step["verdict"] for step in json.loads(done.stdout)["steps"]] == ["done"] * 3
    done = second.run("init", "--identity", "--json")
    assert [s["verdict"] for s in json.loads(done.stdout)["steps"]] == ["ok", "ok", "done"]
    configs = [tomllib.loads(each.config.read_text()) for each in (host, second)]
    assert configs[0]["cluster"]["id"] == configs[1]["cluster"]["id"] != ""
    assert configs[0]["storage"] == configs[1]["storage"]
    assert "hosted-engine" not in configs[0]["storage"]["lockspace"], "the name stays as it was"
    again = host.run("init", "--identity", "--json")
    assert {step["verdict"] for step in json.loads(again.stdout)["steps"]} == {"ok"}


def test_an_identity_is_given_to_a_configured_host_alone(host: Host) -> None:
    done = host.run("init", "--identity")
    assert done.returncode == ExitCode.REFUSED
    assert "this host is not configured" in done.stderr


def write_as_first(host: Host, timestamp: int) -> None:
    """Write the slot of host 1, as its broker would."""
    engine = EngineStatus(VmStatus.DOWN, Health.BAD, "off")
    with Volume(host.shared / "whiteboard") as volume:
        volume.write_slot(1, encode_slot(SlotReport(1, timestamp, 3400, engine, "first")))


def test_who_joins_sees_a_member_write_or_is_refused(
    host: Host, tmp_path_factory: pytest.TempPathFactory, daemon: dict[str, str]
) -> None:
    """A copy of a whiteboard has members in it, and none of them writes."""
    host.verdicts("--migration-uri", "-")
    other = Host(tmp_path_factory.mktemp("other"), daemon)
    write_as_first(host, 77)
    join = ("join", "--from", str(host.config.parent), "--dry-run")
    done = other.run(*join)
    assert done.returncode == ExitCode.STORAGE
    assert "nobody writes to it, host 1 neither, whose files these are" in done.stderr
    assert other.run(*join, "--unproven").returncode == ExitCode.OK
    stop = threading.Event()

    def beat() -> None:
        for timestamp in itertools.count(78):
            write_as_first(host, timestamp)
            if stop.wait(0.2):
                return

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        done = other.run(*join)
    finally:
        stop.set()
        thread.join()
    assert done.returncode == ExitCode.OK, done.stderr
    assert "host 1 (first) writes its slot" in done.stdout


def test_a_token_is_as_good_as_the_three_files_and_is_good_once(
    host: Host, tmp_path_factory: pytest.TempPathFactory, daemon: dict[str, str]
) -> None:
    host.verdicts("--migration-uri", "-")
    other = Host(tmp_path_factory.mktemp("other"), daemon)
    made = host.run("invite", "--address", "127.0.0.1", "--json")
    assert made.returncode == ExitCode.OK, made.stderr
    answer = json.loads(made.stdout)
    write_as_first(host, 77)
    try:
        join = ("join", answer["token"], "--dry-run", "--unproven")
        done = other.run(*join)
        assert done.returncode == ExitCode.OK, done.stderr
        assert "would    config: writing" in done.stdout
        done = other.run(*join)
        assert done.returncode == ExitCode.REFUSED
        assert "the token was used already, by " in done.stderr
        kept = other.config.parent / "joining"
        assert other.run("join", "--from", str(kept), *join[2:]).returncode == ExitCode.OK
    finally:
        os.kill(answer["pid"], signal.SIGKILL)


def test_who_is_no_member_invites_nobody(host: Host) -> None:
    done = host.run("invite")
    assert done.returncode == ExitCode.CONFIG
    assert "is a member of no cluster" in done.stderr
