# SPDX-License-Identifier: LGPL-2.1-or-later
"""A rolling upgrade with the real code of an earlier version, host after host under the running
VM, which is moved between the versions both ways and asked for its page all the while."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import earlier_version

from . import ask
from .cluster import Cluster
from .conftest import law_1, new_cluster
from .environment import COMMANDS_VARIABLE
from .moving import boots, order, settled
from .visitors import Visitors

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
STARTED_S = 60.0
#: One look takes about ten commands, which take a second each on a busy machine.
SETTLED_S = 240.0

#: Imports from the tree that is named for the host on which it runs.
COMMAND = """#!{python}
import pathlib, socket, sys
sys.path.insert(0, pathlib.Path({folder!r}, socket.gethostname()).read_text())
from {module}.main import main
sys.exit(main())
"""


class Versions:
    """Which code the commands of each host run. `folder`: those commands, and the trees' names."""

    def __init__(self, folder: Path, hosts: int) -> None:
        self.folder, self.earlier = folder, folder / "earlier"
        self.earlier.mkdir(parents=True)
        try:
            archive = earlier_version.archive("scoring", "broker", "agent")
        except earlier_version.NotToBeHad as error:
            pytest.skip(str(error))
        subprocess.run(["tar", "-x", "-C", str(self.earlier)], input=archive, check=True)
        for name, module in (("ha-agent", "agent"), ("ha-broker", "broker")):
            path = folder / name
            path.write_text(
                COMMAND.format(python=sys.executable, folder=str(folder), module=module)
            )
            path.chmod(0o755)
        for number in range(1, hosts + 1):
            self.use(f"host{number}", self.earlier)

    def use(self, host: str, tree: Path) -> None:
        """From the next start of a command on it."""
        (self.folder / host).write_text(str(tree))


@pytest.fixture
def earlier(able: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Cluster, Versions]]:
    """A cluster of the earlier version, the VM up."""
    with new_cluster() as cluster:
        versions = Versions(cluster.directory.with_name(f"{cluster.directory.name}-commands"), 3)
        monkeypatch.setenv(COMMANDS_VARIABLE, str(versions.folder))
        try:
            cluster.up(3, named=False)
            yield cluster, versions
        finally:
            shutil.rmtree(versions.folder, ignore_errors=True)


def change(lab: Cluster, versions: Versions, host: str, tree: Path) -> None:
    """Change the version on a host as a package does: restart both daemons, whatever runs there."""
    for daemon in ("agent", "broker"):
        lab.stop(host, daemon)
    versions.use(host, tree)
    for daemon in ("broker", "agent"):
        lab.start(host, daemon)
    ask.until(
        f"{host} shows its state", SETTLED_S, lambda: ask.state(lab, host).startswith("Engine")
    )


def trust_unsigned(lab: Cluster, host: str) -> None:
    """As docs/operations.md says for the way back: the earlier version does not sign, and a host
    that was seen to sign is not believed without. It does not know the key either."""
    path = lab.config_path(host)
    path.write_text(path.read_text().replace("[storage]\n", '[storage]\nunsigned = "trust"\n', 1))
    lab.reload(host)


def knows_moves(lab: Cluster, host: str) -> bool:
    """Whether that host's broker is of this version: the earlier one has no field for a move."""
    shown = json.loads(order(lab, host, "--status", "--json").stdout)
    return all("move" in one for one in shown["hosts"].values())


def test_hosts_are_upgraded_one_after_another_and_the_vm_is_never_down(
    earlier: tuple[Cluster, Versions],
) -> None:
    lab, versions = earlier
    owner = lab.wait_healthy(STARTED_S)
    settled(lab, owner, SETTLED_S)
    before, moved = boots(lab), []
    others = [host for host in lab.hosts if host != owner]
    assert not any(knows_moves(lab, host) for host in lab.hosts)
    with law_1(lab), Visitors(lab.switch_pid) as visitors:
        for host in (others[0], owner, others[1]):
            at = lab.engine_host()
            assert at is not None
            change(lab, versions, host, ROOT)
            settled(lab, at, SETTLED_S)
            assert knows_moves(lab, host)
            # First from an earlier host to the new one, then back to an earlier one, and so on.
            target = host if at != host else others[1]
            done = order(lab, at, "migrate", "--to", target)
            assert done.returncode == 0, done.stderr
            settled(lab, target, SETTLED_S)
            moved.append(f"{at} -> {target}")
        # The reverse: one of the earlier version joins those of this one.
        at = lab.engine_host()
        assert at is not None
        for host in lab.hosts:
            if host != others[0]:
                trust_unsigned(lab, host)
        change(lab, versions, others[0], versions.earlier)
        settled(lab, at, SETTLED_S)
        assert not knows_moves(lab, others[0])
    print(
        f"moved {', '.join(moved)}; {visitors.asked} requests, {len(visitors.failed)} failed, "
        f"longest gap between answers {visitors.longest_gap_s():.2f} s"
    )
    assert not visitors.failed
    assert boots(lab) == before
    assert ask.lease_holders(lab, at), "under its lease to the end"
