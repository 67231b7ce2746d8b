# SPDX-License-Identifier: LGPL-2.1-or-later
"""A VM that loops, hangs or is damaged delays no other by DELAY_S: the same story is told with and
without it. The law `alone` (vm_laws.py) holds in any story, where it must allow for takeovers and
claims that meet; here nothing else is wrong."""

from __future__ import annotations

import pytest

from tests.simulation.scenario import Player, parse

DELAY_S = 2.0
STORY = """# A VM is wanted while another one is in trouble.
hosts 2 host-boot 10 guest-boot 5 chance alone
wait 50
vm db memory 4096 prefer host1 want down
vm other memory 4096 priority 90 prefer host1
expect vm other healthy on host1 within 60
wait 10
{trouble}
start db
expect vm db running within 60
"""


def began_s(trouble: str) -> float:
    """How long after it was wanted the VM was started."""
    player = Player(parse("alone", STORY.format(trouble=trouble)))
    player.play()
    told = [(at_s, text) for at_s, _, text in player.world.trace]
    wanted_s = next(at_s for at_s, text in told if text == "start db")
    return next(at_s for at_s, text in told if text == "started db") - wanted_s


@pytest.fixture(scope="module")
def undisturbed_s() -> float:
    return began_s("wait 10")


@pytest.mark.parametrize(
    "trouble",
    [
        "stop other\nwait 15\nvm other starts no\nstart other\nwait 10",
        "stop other\nwait 15\nvm other starts hangs\nstart other\nwait 10",
        "guest other hangs\nwait 10",
        "guest other ignores-shutdown\nstop other\nwait 10",
        "registry damaged all other\nkill qemu other\nwait 10",
        "guest other snapshot\nwait 9\nkill qemu other\nwait 1",
    ],
    ids=["loops", "its start hangs", "is sick", "does not stop", "is damaged", "is held back"],
)
def test_nothing_that_is_wrong_with_one_vm_delays_another(
    trouble: str, undisturbed_s: float
) -> None:
    assert began_s(trouble) <= undisturbed_s + DELAY_S
