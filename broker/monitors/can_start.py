# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether this host could start the VM as it is defined: the proof of start_proof.py, made again
after each change and at intervals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import libvirt

from broker.config.sections import Config
from broker.daemon.worker import Hung, Worker
from broker.monitors.runner import Unknown
from broker.vm.domain_text import composed
from broker.vm.errors import BadDomain
from broker.vm.needs import VmNeeds, needs_of
from broker.vm.start_proof import AWAY, lacks, refusals, unreadable

#: The interval while the VM could not be started, or that is unknown.
AGAIN_S = 5.0
#: Changes of links may come in hundreds; libvirt is asked at most this often.
LIBVIRT_APART_S = 5.0
PART_DEADLINE_S = 8.0
#: At most so many problems are listed; the rest is counted.
PROBLEMS_MAX = 3


class CanStartMonitor:
    """`disks`: the disks that ran last; a start uses them in place of the definition's.

    True: nothing is known that would make a start fail here. False: something would, see
    `judge`. Unknown: a part of the proof has not answered, and the others found nothing."""

    name = "can_start"
    unit = ""
    deadline_s = 30.0

    def __init__(self, config: Config, interval_s: float = 60.0) -> None:
        self.interval_s = self._often_s = interval_s
        self._config = config
        self.disks: Callable[[], Mapping[str, str]] = dict
        self._host = Worker("what the host has")
        self._files = Worker("files of the VM")
        self._libvirt = Worker("libvirt's capabilities")
        self._connection: libvirt.virConnect | None = None
        self._asked: tuple[str, float, list[str]] = ("", float("-inf"), [])
        self._problems: list[str] = []

    def judge(self, value: bool) -> str:
        """Why a start would fail here."""
        if value:
            return ""
        more = len(self._problems) - PROBLEMS_MAX
        shown = "; ".join(self._problems[:PROBLEMS_MAX])
        return f"{shown}; and {more} more (ha-agent doctor)" if more > 0 else shown

    async def sample(self) -> bool:
        self.interval_s = min(AGAIN_S, self._often_s)
        if not self._config.vm.prove_start:
            self.interval_s = self._often_s
            raise Unknown("not looked at: vm.prove-start is false")
        path = self._config.vm.definition
        try:
            text = await self._host.call("the definition", PART_DEADLINE_S, Path(path).read_text)
            xml = composed(text, self.disks())
            needs = needs_of(xml)
        except (BadDomain, OSError, UnicodeDecodeError) as error:
            # The agent may still start the definition that it has read before.
            raise Unknown(f"{path} cannot be used: {error}") from None
        parts = await asyncio.gather(
            self._host.call("looking", PART_DEADLINE_S, _listed, lacks, needs),
            self._files.call("opening them", PART_DEADLINE_S, _listed, unreadable, needs),
            self._asks(needs, xml),
            return_exceptions=True,
        )
        problems, unanswered = [], []
        for part in parts:
            if isinstance(part, Hung | libvirt.libvirtError):
                unanswered.append(str(part))
            elif isinstance(part, BaseException):
                raise part
            else:
                problems += part
        return self._found(problems, unanswered)

    def _found(self, problems: list[str], unanswered: list[str]) -> bool:
        self._problems = problems
        if problems:
            return False
        if unanswered:
            raise Unknown("; ".join(unanswered))
        self.interval_s = self._often_s
        return True

    async def _asks(self, needs: VmNeeds, xml: str) -> list[str]:
        """libvirt's answer; one that is still fresh is not asked for again."""
        now_s = asyncio.get_running_loop().time()
        about, asked_s, known = self._asked
        if about == xml and now_s - asked_s < LIBVIRT_APART_S:
            return known
        known = await self._libvirt.call("asking", PART_DEADLINE_S, self._in_thread, needs, xml)
        self._asked = (xml, now_s, known)
        return known

    def _in_thread(self, needs: VmNeeds, xml: str) -> list[str]:
        try:
            if self._connection is None:
                self._connection = libvirt.open(self._config.libvirt.uri)
            return list(refusals(self._connection, needs, xml))
        except libvirt.libvirtError as error:
            if self._connection is not None and error.get_error_domain() in AWAY:
                self._connection.close()
                self._connection = None
            raise


def _listed(look: Callable[[VmNeeds], Iterator[str]], needs: VmNeeds) -> list[str]:
    return list(look(needs))
