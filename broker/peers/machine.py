# SPDX-License-Identifier: LGPL-2.1-or-later
"""Asks the kernel of the machine that runs the engine, and the engine itself at the address that
its users use, for a sign of life that does not depend on the broker there.

A dead broker does not answer, although its machine and the VM may be well. But their kernels still
answer a ping, and accept or refuse a connection. A machine that hangs answers none of these, and
neither does the VM on it.

Rules of this file:

1. Any answer is a sign of life. The machine is silent only if no question was answered.
2. Silence counts only for what has answered before: a firewall that drops all packets is no death.
   So both must have answered during this stay of the VM, and not long ago.
3. A question that this host could not send, or whose answer it judged too late, proves nothing, and
   the silence begins anew.
4. Only the machine that runs the engine is asked: by its heir every STEADY_S, sooner where an
   answer is missing, and by all hosts in every beat while its slot does not change. To the other
   hosts an answer shows that it must not be switched off; only the heir can conclude that it hangs.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Protocol

from broker.config.addresses import split
from broker.daemon.name_lookup import NameLookup
from broker.daemon.worker import Hung

STEADY_S = 30.0
#: Where none is asked.
IDLE_S = 3600.0
#: How long before the silence an answer still counts: the questions of one row, and a beat.
FRESH_S = STEADY_S + 5.0
#: Where one of both, the machine and the VM, has not answered, they are asked again after this.
AGAIN_S = 5.0
#: An answer that takes longer is ignored.
QUESTION_S = 1.0
#: A name that takes longer to look up cannot be asked: less than QUESTION_S, since a question that
#: was not sent must not count as one without an answer.
LOOKUP_S = 0.5
#: A question may be over so much later than planned; else this host stood still.
STALL_S = 1.0
#: ssh, and libvirt without and with TLS. A refused connection is an answer too.
PORTS = (22, 16509, 16514)

_NOT_SENT = frozenset({errno.ENETUNREACH, errno.ENETDOWN, errno.EPERM, errno.EACCES})


class Reach(Protocol):
    """Port to the kernels of other machines."""

    async def answers(self, address: str) -> bool | None:
        """Whether the kernel at a published address (host:port) answers within QUESTION_S; None:
        this host cannot ask."""


@dataclass(slots=True)
class Asked:
    """What the machine has answered so far in this place; times of this host's clock."""

    host: int
    addresses: tuple[str, ...]
    kernel_s: float | None = None
    vm_s: float | None = None
    last_s: float | None = None
    silent_since_s: float | None = None


class MachineWatch:
    """`reach` None: nothing is asked. `vm_at`: the engine's address (host:port) for its users; "":
    only its own host can ask it, and then nothing is asked here either. `on_change`: called when a
    machine falls silent, or answers again."""

    def __init__(self, reach: Reach | None = None, vm_at: Callable[[], str] = lambda: "") -> None:
        self._reach, self._vm_at = reach, vm_at
        self._asked: Asked | None = None
        self._every_s = IDLE_S
        self._hurry = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    def silent_since_s(self, host: int) -> float | None:
        """Since when neither the machine nor the VM there has answered, both having done so before;
        None: one of them answers, or nothing is known."""
        asked = self._asked
        if asked is None or asked.host != host or asked.silent_since_s is None:
            return None
        known_s = (asked.kernel_s, asked.vm_s)
        if any(at_s is None or asked.silent_since_s - at_s > FRESH_S for at_s in known_s):
            return None
        return asked.silent_since_s

    def answering(self, fresh_s: float, now_s: float) -> Iterable[int]:
        """The host whose machine has answered a question that is no older than `fresh_s`."""
        asked = self._asked
        if asked is None or asked.last_s is None or asked.silent_since_s is not None:
            return ()
        return (asked.host,) if now_s - asked.last_s <= fresh_s else ()

    def heard_s(self, host: int) -> float | None:
        """When the last question was asked that a machine, or the VM there, answered; None: none
        was."""
        asked = self._asked
        return None if asked is None or asked.host != host else asked.last_s

    def hurry(self, host: int) -> None:
        """Ask at once where that machine is the one to ask."""
        if self._asked is not None and self._asked.host == host:
            self._hurry.set()

    def look(
        self,
        host: int | None,
        addresses: Iterable[str],
        quiet: Container[int],
        watched: Container[int],
        beat_s: float,
    ) -> None:
        """Set which machine is asked, and where; None: as before while that host is quiet, else
        none. `quiet`: hosts whose slots stand still; `watched`: those whose heir this host is."""
        if host is None:
            if self._asked is not None and self._asked.host not in quiet:
                self._asked = None
        elif self._asked is None or self._asked.host != host:
            self._asked = Asked(host, tuple(addresses))
            self._every_s = IDLE_S
        else:
            self._asked.addresses = tuple(addresses) or self._asked.addresses
        every_s = IDLE_S
        if self._asked is not None and self._asked.host in quiet:
            every_s = beat_s
        elif self._asked is not None and self._asked.host in watched:
            every_s = STEADY_S
        if every_s < self._every_s:
            self._hurry.set()
        self._every_s = every_s

    async def run(self) -> None:
        """Ask for ever; return at once where there is nothing to ask with."""
        if self._reach is None:
            return
        clock = asyncio.get_running_loop().time
        while True:
            self._hurry.clear()
            asked_s = clock()
            is_due = self._every_s < IDLE_S
            if is_due and self._asked is not None and (vm_at := self._vm_at()):
                await self._ask(self._asked, vm_at, self._reach, asked_s)
            every_s = self._every_s
            if is_due and self._asked is not None and not _both_answer(self._asked):
                every_s = min(every_s, AGAIN_S)
            try:
                async with asyncio.timeout_at(max(clock(), asked_s + every_s)):
                    await self._hurry.wait()
            except TimeoutError:
                pass

    async def _ask(self, asked: Asked, vm_at: str, reach: Reach, asked_s: float) -> None:
        where = (*asked.addresses, vm_at)
        questions = [asyncio.ensure_future(reach.answers(address)) for address in where]
        await asyncio.wait(questions, timeout=QUESTION_S)
        found = [_result(question) for question in questions]
        was_silent = asked.silent_since_s is not None
        late = asyncio.get_running_loop().time() - asked_s > QUESTION_S + STALL_S
        if True in found[:-1]:
            asked.kernel_s = asked_s
        if found[-1]:
            asked.vm_s = asked_s
        if True in found:
            asked.last_s, asked.silent_since_s = asked_s, None
        elif late or None in found:
            asked.silent_since_s = None
        elif asked.silent_since_s is None:
            asked.silent_since_s = asked_s
        if (asked.silent_since_s is not None) is not was_silent:
            self.on_change()


def _both_answer(asked: Asked) -> bool:
    """Whether the machine and the VM have both answered the last question."""
    return asked.kernel_s is not None and asked.kernel_s == asked.vm_s == asked.last_s


def _result(question: asyncio.Future[bool | None]) -> bool | None:
    """The result of the questions; those without an answer yet are given up."""
    if not question.done():
        question.cancel()
        return False
    error = question.exception()
    return None if error is not None else question.result()


class NetworkReach:
    """Reach port: the network."""

    def __init__(self) -> None:
        self._lookup = NameLookup("a machine's address")

    async def answers(self, address: str) -> bool | None:
        host, port = split(address)
        try:
            async with asyncio.timeout(LOOKUP_S):
                ip_address = (await self._lookup.addresses(host))[0]
        except (Hung, OSError):  # a TimeoutError is an OSError
            return None
        tries = [asyncio.ensure_future(self._connects(ip_address, each)) for each in {*PORTS, port}]
        tries.append(asyncio.ensure_future(self._pings(ip_address)))
        found: list[bool | None] = []
        try:
            for one in asyncio.as_completed(tries, timeout=QUESTION_S):
                if (answered := await one) is True:
                    return True
                found.append(answered)
        except TimeoutError:
            pass
        finally:
            for each in tries:
                each.cancel()
        # A host that cannot ping, and has no route, has asked nothing. A question that has no
        # answer yet was sent.
        return None if found == [None] * len(tries) else False

    async def _connects(self, ip_address: str, port: int) -> bool | None:
        try:
            _, writer = await asyncio.open_connection(ip_address, port)
        except ConnectionRefusedError:
            return True
        except OSError as error:
            # From here nothing was sent; "no route to host" is what a silent machine brings about.
            return None if error.errno in _NOT_SENT else False
        writer.transport.abort()
        return True

    async def _pings(self, ip_address: str) -> bool | None:
        from icmplib import ICMPLibError, async_ping

        try:
            answer = await async_ping(ip_address, 1, timeout=QUESTION_S, privileged=False)
        except (ICMPLibError, OSError):
            return None
        if not answer.packets_sent:
            return None
        return bool(answer.is_alive)
