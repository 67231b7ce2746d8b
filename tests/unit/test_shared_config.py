# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration that all hosts share: on its volume, in each host's copy, and with its file."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import io
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.commands import config_shared, config_show
from agent.terminal.errors import CommandError
from broker.config.cluster_key import ClusterKey
from broker.config.errors import ConfigError
from broker.config.load import load
from broker.config.sealed import opened, seal
from broker.config.secrets import load_fence_secrets, load_notify_secrets
from broker.config.shared import SharedCopy, copy_at, origins, parsed, read_copy
from broker.config.shared_watch import watch_copy
from broker.registry.cache import RegistryCache
from broker.registry.shared import HEAD, TEXTS, TEXTS_AT, SharedConfig, SharedHead
from broker.registry.shared_copy import SharedUpdates, keep
from broker.registry.volume import REGISTRY_BYTES, BadRegistry, Blocks, Registry
from broker.whiteboard.signatures import Signatures, Unsigned
from broker.whiteboard.sizes import SLOT_BYTES
from broker.whiteboard.volume import Volume
from tests.fakes.blocks import Died, MemoryBlocks

CLUSTER = "7b3f0000-1111-2222-3333-444455556666"
KEY = ClusterKey(b"k" * 32)
SIGNED = Signatures(KEY, Unsigned.IGNORE)
WEIGHT = "[score]\nvm-page = 1234\n"


def shared_on(volume: MemoryBlocks, signatures: Signatures = SIGNED, of: str = CLUSTER) -> Any:
    return SharedConfig(volume, of, signatures)


def write(shared: SharedConfig, text: str) -> SharedHead:
    return shared.write(shared.head(), text, 1_700_000_000.0, "host1", "a change")


def newest(shared: SharedConfig) -> str:
    return shared.text(shared.head().texts[0])


# --- on the volume --------------------------------------------------------------------------


def test_what_was_written_is_read_and_the_generation_grows() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    shared = shared_on(volume)
    assert shared.head() == SharedHead(cluster=CLUSTER)
    for number in range(1, 12):
        assert write(shared, f"# {number}").generation == number
    head = shared.head()
    assert [shared.text(one) for one in head.texts] == [f"# {n}" for n in range(11, 11 - TEXTS, -1)]
    assert head.texts[0].by == "host1"


def test_it_lies_beside_the_vms_and_neither_touches_the_other() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    registry = Registry(volume, CLUSTER, SIGNED)
    registry.make()
    before = dict(volume.blocks)
    for _ in range(TEXTS):
        write(shared_on(volume), "#" + os.urandom(20_000).hex())
    assert {at: volume.blocks[at] for at in before} == before
    assert registry.read().records == {}
    changed = [at for at in volume.blocks if at not in before]
    assert min(changed) == HEAD * SLOT_BYTES and max(changed) < 1024 * 1024


@pytest.mark.parametrize("writes", range(4))
def test_a_writer_that_dies_leaves_the_old_text_or_the_new_one(writes: int) -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    shared = shared_on(volume)
    write(shared, "# old")
    new = "#" + os.urandom(5_000).hex()
    volume.writes_left = writes
    try:
        write(shared, new)
    except Died:
        volume.writes_left = None
    assert newest(shared) in ("# old", new)
    assert (newest(shared) == new) == (writes > 2)


def test_a_damaged_text_is_not_handed_on() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    shared = shared_on(volume)
    write(shared, "# text")
    volume.blocks[TEXTS_AT] = b"x" * SLOT_BYTES
    with pytest.raises(BadRegistry, match="generation 1 is damaged"):
        newest(shared)


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (lambda v: shared_on(v, Signatures(ClusterKey(b"o" * 32), Unsigned.IGNORE)), "not signed"),
        (lambda v: shared_on(v, of="other"), "another cluster"),
    ],
)
def test_one_of_another_cluster_or_key_does_not_count(reader: Any, said: str) -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    write(shared_on(volume), "# text")
    with pytest.raises(BadRegistry, match=said):
        reader(volume).head()


def test_a_torn_head_is_an_error_and_not_an_empty_configuration() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    write(shared_on(volume), "# text")
    block = volume.blocks[HEAD * SLOT_BYTES]
    volume.blocks[HEAD * SLOT_BYTES] = block[:200] + bytes(SLOT_BYTES - 200)
    with pytest.raises(BadRegistry, match="cannot be read"):
        shared_on(volume).head()


def test_a_text_that_does_not_fit_is_refused_and_nothing_changes() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    write(shared_on(volume), "# text")
    with pytest.raises(BadRegistry, match="more than fits"):
        write(shared_on(volume), "#" + os.urandom(100_000).hex())
    assert newest(shared_on(volume)) == "# text"


def test_a_change_of_the_key_signs_it_anew() -> None:
    volume = MemoryBlocks(REGISTRY_BYTES)
    write(shared_on(volume), "# text")
    both = Signatures(ClusterKey(b"n" * 32, b"k" * 32), Unsigned.IGNORE)
    assert shared_on(volume, both).sign_anew() == 1
    assert shared_on(volume, both).sign_anew() == 0
    alone = Signatures(ClusterKey(b"n" * 32), Unsigned.IGNORE)
    assert newest(shared_on(volume, alone)) == "# text"


# --- with a host's file ---------------------------------------------------------------------


@dataclasses.dataclass
class Host:
    """A host with its own file; `also`: what stands in it too."""

    folder: Path
    also: str = ""

    def __post_init__(self) -> None:
        self.state = str(self.folder / "state")
        self.path = str(self.folder / "ha-agent.toml")
        Path(self.path).write_text(
            f'[host]\nid = 1\n[cluster]\nid = "{CLUSTER}"\n[daemon]\nstate-dir = "{self.state}"\n'
            f'secrets = "{self.folder}/secrets.toml"\n'
            '[storage]\nwhiteboard = "/s/w"\nleases = "/s/l"\nregistry = "/s/r"\n' + self.also
        )

    def copy(self, text: str, generation: int = 1, cluster: str = CLUSTER) -> None:
        keep(self.state, SharedCopy(cluster, generation, text))


def test_a_key_counts_from_the_shared_part_unless_the_file_sets_it(tmp_path: Path) -> None:
    host = Host(tmp_path, "[score]\nbase-score = 77\n")
    host.copy("[score]\nbase-score = 88\nnetwork-score-penalty = 5\n")
    score = load(host.path).score
    assert (score.base_score, score.network_score_penalty) == (77, 5)
    assert config_show.origins_of(host.path)["score.base-score"] == ("host, not the cluster's 88")
    assert config_show.origins_of(host.path)["score.network-score-penalty"] == "cluster"
    assert config_show.origins_of(host.path)["host.id"] == "host"


def test_without_a_copy_and_with_one_of_another_cluster_the_file_says_everything(
    tmp_path: Path,
) -> None:
    host = Host(tmp_path)
    alone = load(host.path)
    host.copy("[score]\nnetwork-score-penalty = 5\n", cluster="other")
    assert load(host.path) == alone


def test_a_damaged_copy_is_an_error_that_names_it_and_the_remedy(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.copy("")
    copy_at(host.state).write_text("{")
    with pytest.raises(ConfigError, match=r"shared-config\.json: is damaged; remove it"):
        load(host.path)


def test_a_shared_key_that_does_not_fit_names_the_shared_part(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with pytest.raises(ConfigError, match="with the shared configuration: unknown key"):
        load(host.path, shared="[score]\nnonsense = 1\n")


@pytest.mark.parametrize("text", ["[host]\nid = 7\n", '[daemon]\nsocket = "/x"\n', "host = 1\n"])
def test_what_belongs_to_one_host_cannot_be_shared(text: str) -> None:
    with pytest.raises(ConfigError, match="belongs to one host"):
        parsed(text)


def test_origins_name_the_cluster_s_other_value() -> None:
    found = origins({"a": {"x": 1, "y": 2, "l": [1]}}, {"a": {"y": 3, "z": 4, "l": [2]}})
    assert found == {
        "a.l": "host, not the cluster's list",
        "a.x": "cluster",
        "a.y": "host, not the cluster's 2",
        "a.z": "host",
    }


# --- the copy -------------------------------------------------------------------------------


def updates(host: Host, signatures: Signatures = SIGNED) -> SharedUpdates:
    return SharedUpdates(host.path, load(host.path), signatures)


def test_a_newer_one_becomes_the_copy_and_counts(tmp_path: Path) -> None:
    host, volume = Host(tmp_path), MemoryBlocks(REGISTRY_BYTES)
    one = updates(host)
    one.look(volume)
    assert read_copy(host.state, CLUSTER) is None, "nothing is shared yet"
    write(shared_on(volume), "[score]\nnetwork-score-penalty = 5\n")
    one.look(volume)
    assert load(host.path).score.network_score_penalty == 5
    assert one.problem == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[score]\nof-a-later-version = 1\n", "of-a-later-version"),
        ("not TOML", "is not TOML"),
        ('[vm]\nname = "another"\n', "vm.name cannot change while the daemons run"),
        ("[score]\ncpu-load-penalty-min = 0.9\ncpu-load-penalty-max = 0.5\n", "is above"),
    ],
)
def test_one_that_this_host_cannot_use_changes_nothing_and_is_said(
    tmp_path: Path, text: str, said: str
) -> None:
    host, volume = Host(tmp_path), MemoryBlocks(REGISTRY_BYTES)
    one = updates(host)
    write(shared_on(volume), "[score]\nnetwork-score-penalty = 5\n")
    one.look(volume)
    write(shared_on(volume), text)
    one.look(volume)
    assert said in one.problem
    assert load(host.path).score.network_score_penalty == 5
    write(shared_on(volume), "[score]\nnetwork-score-penalty = 6\n")
    one.look(volume)
    assert (one.problem, load(host.path).score.network_score_penalty) == ("", 6)


def test_an_older_volume_and_an_unsigned_head_bring_no_old_value_to_life(tmp_path: Path) -> None:
    host = Host(tmp_path)
    one = updates(host)
    host.copy("[score]\nnetwork-score-penalty = 6\n", generation=2)
    old = MemoryBlocks(REGISTRY_BYTES)
    write(shared_on(old), "[score]\nnetwork-score-penalty = 5\n")
    one.look(old)
    assert "generation 1, and 2 was read before" in one.problem
    forged = MemoryBlocks(REGISTRY_BYTES)
    stranger = shared_on(forged, Signatures(None, Unsigned.TRUST))
    for number in range(5):
        write(stranger, f"[score]\nnetwork-score-penalty = {number}\n")
    one.look(forged)
    assert "not signed" in one.problem
    assert load(host.path).score.network_score_penalty == 6


def test_a_copy_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    host, volume = Host(tmp_path), MemoryBlocks(REGISTRY_BYTES)
    one = updates(host)
    Path(host.state).write_text("a file in the place of the folder")
    write(shared_on(volume), "[score]\nnetwork-score-penalty = 5\n")
    one.look(volume)
    assert "shared-config.json: cannot be written" in one.problem


def test_the_daemons_notice_a_new_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(tmp_path)
    monkeypatch.setattr("broker.config.shared_watch.LOOK_EVERY_S", 0.001)

    async def run() -> None:
        noticed = asyncio.Event()
        task = asyncio.create_task(watch_copy(host.state, noticed.set))
        await asyncio.sleep(0.01)
        host.copy("")
        await asyncio.wait_for(noticed.wait(), 30)
        task.cancel()

    asyncio.run(run())


def test_the_registry_is_read_with_it(tmp_path: Path) -> None:
    host, volume = Host(tmp_path), MemoryBlocks(REGISTRY_BYTES)
    Registry(volume, CLUSTER, SIGNED).make()
    write(shared_on(volume), "[score]\nnetwork-score-penalty = 5\n")

    async def run() -> None:
        def opened() -> contextlib.AbstractContextManager[Blocks]:
            return contextlib.nullcontext(volume)

        cache = RegistryCache(opened, CLUSTER, SIGNED, Path(host.state) / "vms")
        cache.also = updates(host).look
        await cache.look(1.0)

    asyncio.run(run())
    assert load(host.path).score.network_score_penalty == 5


# --- the commands ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "value"),
    [("5", 5), ("true", True), ("text", "text"), ('"5"', "5"), ('["a", "b"]', ("a", "b"))],
)
def test_a_value_is_read_as_it_is_typed(said: str, value: object) -> None:
    assert config_shared.value_of(said) == value


def test_a_table_is_no_value_of_one_key() -> None:
    with pytest.raises(CommandError, match="config edit"):
        config_shared.value_of("{a = 1}")


def test_what_is_shared_is_checked_as_config_check_does(tmp_path: Path) -> None:
    host = Host(tmp_path)
    with pytest.raises(ConfigError, match="belongs to one host"):
        config_shared.check(host.path, "[host]\nid = 7\n")
    with pytest.raises(CommandError, match="nonsense"):
        config_shared.check(host.path, "[score]\nnonsense = 1\n")


def test_a_damaged_head_is_mended_from_this_hosts_copy(tmp_path: Path) -> None:
    host, volume = Host(tmp_path), MemoryBlocks(REGISTRY_BYTES)
    host.copy("# kept", generation=4)
    volume.blocks[HEAD * SLOT_BYTES] = b"x" * SLOT_BYTES
    shared = shared_on(volume)
    head, text = config_shared.present(host.path, shared)
    assert (head.generation, text) == (4, "# kept")
    assert shared.write(head, "# new", 1.0, "host1", "x").generation == 5
    assert newest(shared) == "# new"


def test_a_damaged_head_without_a_copy_is_not_written_over(tmp_path: Path) -> None:
    host, volume = Host(tmp_path), MemoryBlocks(REGISTRY_BYTES)
    volume.blocks[HEAD * SLOT_BYTES] = b"x" * SLOT_BYTES
    with pytest.raises(BadRegistry):
        config_shared.present(host.path, shared_on(volume))


def test_get_says_the_value_and_where_it_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path)
    host.copy("[score]\nnetwork-score-penalty = 5\n")
    config_shared.get(host.path, "score.network-score-penalty", False)
    config_shared.get(host.path, "host.id", False)
    config_shared.get(host.path, "score.base-score", False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["5  # cluster", "1  # host"]
    assert lines[2].endswith("  # default")


def test_set_for_this_host_alone_changes_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = Host(tmp_path)
    config_shared.set_key(host.path, "score.network-score-penalty", "7", True, False)
    assert load(host.path).score.network_score_penalty == 7
    assert capsys.readouterr().out.strip().endswith("systemctl reload ha-broker ha-agent")
    config_shared.set_key(host.path, "host.memory-reserve", "2048", True, False)
    assert capsys.readouterr().out.strip().endswith("systemctl restart ha-broker ha-agent")


def test_without_a_registry_it_says_what_makes_the_place(tmp_path: Path) -> None:
    host = Host(tmp_path)
    text = Path(host.path).read_text().replace('registry = "/s/r"\n', "")
    Path(host.path).write_text(text)
    with pytest.raises(CommandError, match="ha-agent storage grow --vms 2"):
        config_shared.history(host.path, False)


# --- the commands on a real volume ----------------------------------------------------------


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with a registry on a file; the lease is free, and nobody else wants it."""
    host = Host(tmp_path)
    place = tmp_path / "registry"
    with place.open("wb") as file:
        file.truncate(REGISTRY_BYTES)
    text = Path(host.path).read_text().replace('"/s/r"', f'"{place}"')
    Path(host.path).write_text(text.replace("[daemon]", f'[daemon]\nsocket = "{tmp_path}/none"'))
    secrets = tmp_path / "secrets.toml"
    secrets.write_text(f'cluster-key = "{"6b" * 32}"\n')
    secrets.chmod(0o600)
    with Volume(str(place)) as volume:
        Registry(volume, CLUSTER, SIGNED).make()
    monkeypatch.setattr(config_shared, "held", lambda config: contextlib.nullcontext())
    return host


def change(host: Host, key: str, value: str) -> None:
    assert config_shared.set_key(host.path, key, value, False, False) == 0


def test_set_history_and_rollback(member: Host, capsys: pytest.CaptureFixture[str]) -> None:
    change(member, "score.network-score-penalty", "5")
    with pytest.raises(CommandError, match="generation 1 is the first: there is none before it"):
        config_shared.rollback(member.path, None, False)
    change(member, "score.network-score-penalty", "6")
    assert load(member.path).score.network_score_penalty == 6
    config_shared.rollback(member.path, None, False)
    assert load(member.path).score.network_score_penalty == 5
    capsys.readouterr()
    config_shared.history(member.path, False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "2", "1"]
    assert lines[0].endswith("as generation 1")
    assert lines[1].endswith("score.network-score-penalty = 6")
    with pytest.raises(CommandError, match="kept are 3, 2, 1"):
        config_shared.rollback(member.path, 9, False)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("score.nonsense", "1", "nonsense"),
        ("host.id", "7", "belongs to one host"),
        ("vm.name", "other", "vm.name cannot change while the daemons run"),
        ("score.network-score-penalty", "much", "network-score-penalty"),
        ("score", "5", "score: is a table; name one of its keys, as score.KEY"),
        # The member's own file has a value of each, which hides the shared one here alone.
        ("network.test", "pign", "shared configuration: network.test: must be ping, dns, tcp or"),
        ("network.targets", "192.0.2.1", "network.targets: must be a list, such as"),
        ("vm.definition", "/x.xml", "vm.definition cannot change while the daemons run"),
    ],
)
def test_what_is_wrong_is_not_written(member: Host, key: str, value: str, said: str) -> None:
    own = '[network]\ntest = "ping"\ntargets = ["192.0.2.9"]\n[vm]\ndefinition = "/own.xml"\n'
    Path(member.path).write_text(Path(member.path).read_text() + own)
    with pytest.raises((CommandError, ConfigError), match=said):
        config_shared.set_key(member.path, key, value, False, False)
    assert read_copy(member.state, CLUSTER) is None


def test_a_key_that_the_own_file_hides_is_said_to_be(
    member: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(member.path).write_text(Path(member.path).read_text() + "[timing]\nfence-after = 15\n")
    change(member, "timing.fence-after", "12")
    said = capsys.readouterr().out
    assert f"counts here: take timing.fence-after out of {member.path}" in said
    change(member, "timing.suspect-after", "4")
    assert "counts here" not in capsys.readouterr().out


def test_without_a_terminal_and_an_editor_nothing_is_opened(
    member: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDITOR", raising=False)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(CommandError, match=r"no terminal.*ha-agent config set KEY VALUE"):
        config_shared.edit(member.path, False)


def editor(folder: Path, script: str) -> str:
    path = folder / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_edit(member: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", editor(member.folder, 'echo "[fence]\nper-hour = 3" > "$1"'))
    assert config_shared.edit(member.path, False) == 0
    assert load(member.path).fence.per_hour == 3
    monkeypatch.setenv("EDITOR", "true")
    with pytest.raises(CommandError, match="nothing was changed"):
        config_shared.edit(member.path, False)


def test_an_edit_that_is_not_utf_8_is_refused_and_not_lost(
    member: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", editor(member.folder, r"""printf '# \351t\351\n' > "$1" """))
    with pytest.raises(CommandError, match="is not UTF-8; nothing was changed") as caught:
        config_shared.edit(member.path, False)
    assert Path(str(caught.value).split()[0]).read_bytes() == b"# \xe9t\xe9\n"


def test_an_edit_that_another_command_overtook_is_refused_and_not_lost(
    member: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setenv("EDITOR", "slow")

    def slow(words: list[str], check: bool) -> Any:
        seen.append(words[-1])
        change(member, "score.network-score-penalty", "5")
        Path(words[-1]).write_text("[fence]\nper-hour = 3\n")
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("agent.commands.config_shared.subprocess.run", slow)
    with pytest.raises(CommandError, match="another command was faster: generation 1 is there"):
        config_shared.edit(member.path, False)
    assert load(member.path).score.network_score_penalty == 5
    assert Path(seen[0]).read_text() == "[fence]\nper-hour = 3\n"
    Path(seen[0]).unlink()


def test_a_volume_that_is_away_is_one_sentence(member: Host) -> None:
    (member.folder / "registry").unlink()
    with pytest.raises(CommandError, match=r"registry .*/registry: "):
        config_shared.set_key(member.path, "fence.per-hour", "3", False, False)


# --- sealed secrets -------------------------------------------------------------------------

DEVICE = '[[fence.device]]\nhost = 2\naddress = "192.0.2.2"\nusername = "admin"\n'


def seal_it(host: Host, monkeypatch: pytest.MonkeyPatch, name: str, secret: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{secret}\n"))
    assert config_shared.set_secret(host.path, name, False) == 0


def shared_text(host: Host) -> str:
    copy = read_copy(host.state, CLUSTER)
    assert copy is not None
    return copy.text


def with_device(host: Host) -> None:
    Path(host.path).write_text(Path(host.path).read_text() + DEVICE)


def test_a_sealed_password_is_every_member_s_and_nobody_else_s(
    member: Host, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_device(member)
    assert load_fence_secrets(load(member.path))["2"].password == ""
    seal_it(member, monkeypatch, "fence-passwords.2", "hunter2 ä")
    seal_it(member, monkeypatch, "smtp-password", "mail")
    assert load_fence_secrets(load(member.path))["2"].password == "hunter2 ä"
    config_shared.history(member.path, False)
    config_show.show(member.path, True)
    said = capsys.readouterr().out + shared_text(member)
    assert "hunter2" not in said and "fence-passwords.2, sealed" in said
    # The host's own file counts first.
    secrets = member.folder / "secrets.toml"
    old = secrets.read_text()
    secrets.write_text(f'{old}[fence-passwords]\n2 = "own"\n')
    assert load_fence_secrets(load(member.path))["2"].password == "own"
    # Who has another key, or none, opens nothing.
    for text in (f'cluster-key = "{"7b" * 32}"\n', "\n"):
        secrets.write_text(text)
        with pytest.raises(ConfigError, match=r"config secret fence-passwords\.2") as refused:
            load_fence_secrets(load(member.path))
        assert "hunter2" not in str(refused.value)


def test_the_rotation_locks_out_who_has_the_old_key_alone(
    member: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_device(member)
    seal_it(member, monkeypatch, "fence-passwords.2", "hunter2")
    sealed_before = load(member.path).sealed.fence_passwords["2"]
    new, old = "7b" * 32, "6b" * 32
    secrets = member.folder / "secrets.toml"
    secrets.write_text(f'cluster-key = "{new}"\ncluster-key-accepted = "{old}"\n')
    assert load_fence_secrets(load(member.path))["2"].password == "hunter2"
    assert config_shared.reseal(member.path, False) == 0
    sealed = load(member.path).sealed.fence_passwords["2"]
    assert sealed != sealed_before
    secrets.write_text(f'cluster-key = "{new}"\n')
    assert load_fence_secrets(load(member.path))["2"].password == "hunter2"
    with pytest.raises(ConfigError):
        opened(KEY, "fence-passwords.2", sealed)


def test_a_sealed_text_opens_under_its_own_name_alone_and_is_never_the_same() -> None:
    sealed = seal(KEY, "fence-passwords.2", "x")
    assert opened(KEY, "fence-passwords.2", sealed) == "x"
    assert seal(KEY, "fence-passwords.2", "x") != sealed
    other = base64.b64encode(base64.b64decode(sealed)[:-1] + b"x").decode()
    for name, text in (
        ("fence-passwords.3", sealed),
        ("smtp-password", sealed),
        ("fence-passwords.2", other),
        ("fence-passwords.2", "no base64"),
        ("fence-passwords.2", ""),
    ):
        with pytest.raises(ConfigError, match="cannot be opened"):
            opened(KEY, name, text)


@pytest.mark.parametrize("name", ["cluster-key", "fence-passwords", "fence-passwords.2.x", ""])
def test_what_is_no_secret_to_share_is_refused(member: Host, name: str) -> None:
    with pytest.raises(CommandError, match="no secret that can be shared"):
        config_shared.set_secret(member.path, name, False)


def test_nothing_sealed_is_nothing_to_seal_anew(member: Host) -> None:
    with pytest.raises(CommandError, match="nothing is sealed yet"):
        config_shared.reseal(member.path, False)


def test_mail_and_webhook_take_what_is_sealed(
    member: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "k" * 20
    seal_it(member, monkeypatch, "smtp-password", "mail")
    seal_it(member, monkeypatch, "webhook-key", key)
    Path(member.path).write_text(
        Path(member.path).read_text()
        + '[notify.smtp]\nserver = "m"\nusername = "u"\nsender = "a@b"\nrecipients = ["a@b"]\n'
        '[notify.webhook]\nurl = "https://x/"\n'
    )
    found = load_notify_secrets(load(member.path))
    assert (found.smtp_password, found.webhook_key) == ("mail", key)
