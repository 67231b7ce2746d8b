# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM runs and is not seen to: no host may call it down. With real sanlock, libvirt, QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from broker.daemon.exit_codes import ExitCode

from . import ask
from .cluster import Cluster
from .errors import law
from .layout import host_id_of

#: Until the other hosts miss a slot, and until a renewal has come after it stood still.
MISSED_S, RENEWED_S = 10.0, 40.0


def told(lab: Cluster, host: str) -> tuple[int, str]:
    """Exit code and text of `ha-agent --status` there."""
    done = lab.sh(host, ["ha-agent", "--status"])
    return done.returncode, done.stdout


def engine(lab: Cluster, host: str) -> dict[str, Any]:
    found: dict[str, Any] = ask.status(lab, host)["engine"]
    return found


def is_unknown(lab: Cluster, host: str) -> bool:
    return engine(lab, host)["up"] is None


def is_up(lab: Cluster, host: str) -> bool:
    return engine(lab, host)["up"] is True


def not_down(lab: Cluster, hosts: list[str]) -> bool:
    return lab.page_answers() and all(engine(lab, host)["up"] is not False for host in hosts)


def most_likely(lab: Cluster, host: str, owner: str) -> bool:
    code, text = told(lab, host)
    says = "the VM most likely runs there" in text and "NOT KNOWN" in text
    return code == ExitCode.ENGINE_UNKNOWN and says and owner in text.splitlines()[0]


@contextmanager
def stopped(lab: Cluster, host: str) -> Iterator[None]:
    """Agent and broker end in good order and stay away, as a removed package's do."""
    for daemon in ("agent", "broker"):
        lab.stop(host, daemon)
    try:
        yield
    finally:
        for daemon in ("broker", "agent"):
            lab.start(host, daemon)


@contextmanager
def storage(lab: Cluster, host: str, fault: str) -> Iterator[None]:
    lab.storage(host, fault)
    try:
        yield
    finally:
        lab.storage(host, "ok")


def test_a_vm_whose_host_has_no_daemons_is_not_called_down(fencing: Cluster) -> None:
    lab = fencing
    owner = lab.wait_healthy(60)
    others = [host for host in lab.hosts if host != owner]
    with stopped(lab, owner):
        for host in others:
            ask.until(f"{host} does not know", MISSED_S, partial(is_unknown, lab, host))
        for host in others:
            ask.until(
                f"{host} says where it most likely runs",
                RENEWED_S,
                partial(most_likely, lab, host, owner),
            )
        with law(7):
            ask.during("nobody says DOWN", 15, partial(not_down, lab, others))
        heir = others[0]
        _, text = told(lab, heir)
        assert "free in" not in text, "a countdown that begins anew with each renewal"
        assert engine(lab, heir)["likely"] == host_id_of(owner)
        assert lab.sh(heir, ["ha-agent", "why"]).returncode == ExitCode.ENGINE_UNKNOWN
        checked = lab.sh(heir, ["ha-agent", "check-liveliness"])
        assert checked.returncode == ExitCode.ENGINE_UNKNOWN, checked.stdout
    for host in others:
        ask.until(f"{host} sees it again", 20, partial(is_up, lab, host))


def test_a_host_whose_storage_hangs_speaks_of_itself(fencing: Cluster) -> None:
    lab = fencing
    owner = lab.wait_healthy(60)
    blind = next(host for host in lab.hosts if host != owner)
    with storage(lab, blind, "hang"):
        ask.until("it is blind", MISSED_S, lambda: ask.status(lab, blind)["storage"]["blind"])
        shown = ask.status(lab, blind)
        own = shown["hosts"][str(host_id_of(blind))]
        peers = [host for host in shown["hosts"].values() if not host["local"]]
        assert {host["liveness"] for host in peers} == {"uncertain"}
        # The host hears from the owner over the network that the VM runs there, or does not know.
        assert shown["engine"]["up"] is not False
        ask.until(
            "its own score is none",
            MISSED_S,
            lambda: ask.status(lab, blind)["hosts"][str(own["host_id"])]["score"] == 0,
        )
        _, text = told(lab, blind)
        assert "STORAGE hung" in text and "LAST WORD" in text
        assert "SILENT" not in text and "is silent" not in text.replace("THIS HOST is silent", "")
        with law(7):
            ask.during("it does not say DOWN", 5, partial(not_down, lab, [blind]))
        lab.partition(blind)
        try:
            ask.until("deaf too, it does not know", 15, partial(is_unknown, lab, blind))
            code, text = told(lab, blind)
            assert code == ExitCode.ENGINE_UNKNOWN
            assert "this host has not read the whiteboard for" in text.splitlines()[0]
        finally:
            lab.heal(blind)
