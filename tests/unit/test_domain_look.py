# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt tells of the VM's domain beside its state (broker/monitors/domain_look.py)."""

from __future__ import annotations

import json
from typing import Any

import libvirt
import libvirt_qemu
import pytest

from broker.monitors.domain_look import PAUSES, DomainLook
from broker.vm.in_the_way import in_the_way
from scoring.vm.left_behind import LEFTOVER_AFTER_S
from scoring.vm_facts import DomainHere, EngineStatus, Health, Leftover, Obstacle, Pause, VmStatus

L = libvirt
USER = (L.VIR_DOMAIN_PAUSED, L.VIR_DOMAIN_PAUSED_USER)
RUNNING = (L.VIR_DOMAIN_RUNNING, L.VIR_DOMAIN_RUNNING_UNPAUSED)
INCOMING = (L.VIR_DOMAIN_PAUSED, L.VIR_DOMAIN_PAUSED_MIGRATION)


class Domain:
    """`status`: QEMU's run state; `job`: what jobStats gives, or raises by libvirt's code."""

    def __init__(self, status: Any = "paused", job: Any = 0) -> None:
        self.status, self.job = status, job
        self.image = self.starts = 0
        self.asked = 0

    def hasManagedSaveImage(self) -> int:  # noqa: N802
        return self.image

    def autostart(self) -> int:
        return self.starts

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        if isinstance(self.job, Refused):
            raise self.job
        return {"type": self.job}


class Refused(libvirt.libvirtError):  # type: ignore[misc]
    def __init__(self, code: int) -> None:
        super().__init__("refused")
        self.err = (code, 0, "refused", 0, None, None, None, 0, 0)


@pytest.fixture(autouse=True)
def monitor_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(domain: Domain, command: str, flags: int) -> str:
        assert command == '{"execute":"query-status"}'
        domain.asked += 1
        if isinstance(domain.status, Refused):
            raise domain.status
        if "{" in domain.status:
            return str(domain.status)
        return json.dumps({"return": {"status": domain.status}})

    monkeypatch.setattr(libvirt_qemu, "qemuMonitorCommand", answer)


def look(
    domain: Domain, at: tuple[int, int], leaving: bool = False, pid: int | None = 7
) -> DomainHere:
    return DomainLook().look(domain, *at, leaving, pid)


def test_each_reason_of_libvirt_is_a_pause_of_its_own_words() -> None:
    for reason, (pause, words) in PAUSES.items():
        assert look(Domain(), (L.VIR_DOMAIN_PAUSED, reason)).pause is pause
        assert words.startswith("paused")
    assert look(Domain(), (L.VIR_DOMAIN_PMSUSPENDED, 0)).pause is Pause.GUEST
    for state in (RUNNING, INCOMING, (L.VIR_DOMAIN_SHUTOFF, 1)):
        assert look(Domain(), state).pause is None
    assert look(Domain(), USER, leaving=True).pause is None


def test_a_vm_that_never_ran_is_not_one_that_a_user_paused() -> None:
    """libvirt names the same reason for both; QEMU knows."""
    assert look(Domain("prelaunch"), USER).pause is Pause.NEVER_RAN
    assert look(Domain("paused"), USER).pause is Pause.USER
    silent: list[Any] = [Refused(L.VIR_ERR_OPERATION_INVALID), "{damaged", '{"return":{}}', "{}"]
    for status in silent:
        assert look(Domain(status), USER).pause is Pause.USER, "not known: nothing is done for it"


def test_qemu_is_not_asked_about_what_was_seen_to_run() -> None:
    ours, domain = DomainLook(), Domain("paused")
    ours.look(domain, *RUNNING, False, 7)
    ours.look(domain, *USER, False, 7)
    assert domain.asked == 0
    for _ in range(3):
        ours.look(domain, *USER, False, 8)
    assert domain.asked == 1, "once for another process"
    started = Domain("prelaunch")
    for _ in range(2):
        assert ours.look(started, *USER, False, 9).pause is Pause.NEVER_RAN
    assert started.asked == 2, "it may have been resumed meanwhile"


def test_a_dead_process_is_told_from_one_that_is_being_received() -> None:
    for at in (
        (L.VIR_DOMAIN_CRASHED, L.VIR_DOMAIN_CRASHED_PANICKED),
        (L.VIR_DOMAIN_PAUSED, L.VIR_DOMAIN_PAUSED_CRASHED),
    ):
        assert look(Domain(), at).leftover is Leftover.CRASHED
    jobs: list[tuple[Any, Leftover | None]] = [
        (L.VIR_DOMAIN_JOB_NONE, Leftover.NOT_RECEIVED),
        (L.VIR_DOMAIN_JOB_UNBOUNDED, None),
        (Refused(L.VIR_ERR_OPERATION_UNSUPPORTED), None),
        (Refused(L.VIR_ERR_NO_SUPPORT), None),
    ]
    for job, leftover in jobs:
        assert look(Domain(job=job), INCOMING).leftover is leftover
    assert look(Domain(), INCOMING, leaving=True).leftover is None
    assert look(Domain(), USER).leftover is None
    with pytest.raises(Refused):
        look(Domain(job=Refused(L.VIR_ERR_INTERNAL_ERROR)), INCOMING)


def test_an_image_and_autostart_are_seen() -> None:
    domain = Domain()
    assert (look(domain, RUNNING).memory_image, look(domain, RUNNING).autostart) == (False, False)
    domain.image = domain.starts = 1
    assert (look(domain, RUNNING).memory_image, look(domain, RUNNING).autostart) == (True, True)


def test_what_is_in_the_way_is_an_obstacle_with_its_sentence() -> None:
    died = EngineStatus(VmStatus.DOWN_UNEXPECTED, Health.BAD, "panicked", "the kernel panicked")
    assert in_the_way(DomainHere(), died, 0.0) == ()
    (unfit,) = in_the_way(DomainHere(leftover=Leftover.CRASHED), died, 0.0)
    assert unfit.obstacle is Obstacle.LEFTOVER and "the kernel panicked" in unfit.text
    waits = DomainHere(leftover=Leftover.NOT_RECEIVED, leftover_since_s=5.0)
    assert in_the_way(waits, died, 5.0 + LEFTOVER_AFTER_S - 1) == ()
    assert in_the_way(waits, died, 5.0 + LEFTOVER_AFTER_S)
