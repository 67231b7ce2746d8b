# SPDX-License-Identifier: LGPL-2.1-or-later
"""XML that somebody else wrote: entities neither fill the memory nor read a file. expat sees to
it, from 2.4.1 on; this holds the one that is installed to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.ovirt.import_ovirt import _from_xml
from agent.ovirt.storage_domain import StorageDomain
from agent.terminal.errors import CommandError
from broker.vm.domain_facts import parse, parse_disk
from broker.vm.errors import BadDomain

LEVELS = 9
BOMB = (
    "<!DOCTYPE x [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, LEVELS + 1))
    + f"]><{{root}}><target dev='vda'/>&a{LEVELS};</{{root}}>"
)
OUTSIDE = (
    "<!DOCTYPE x [<!ENTITY f SYSTEM 'file://{path}'>]><{{root}}><target dev='vda'/>&f;</{{root}}>"
)


def imported(text: str) -> Any:
    domain = StorageDomain.__new__(StorageDomain)
    return _from_xml(text, "x.ovf", domain)


READERS: dict[str, Callable[[str], Any]] = {
    "domain": parse,
    "disk": parse_disk,
    "Envelope": imported,
}


@pytest.mark.parametrize("root", sorted(READERS))
def test_entities_are_refused(root: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    for text in (BOMB, OUTSIDE.format(path=secret)):
        with pytest.raises((BadDomain, CommandError)) as caught:
            READERS[root](text.replace("{root}", root))
        assert "hunter2" not in str(caught.value)
        assert "amplification" in str(caught.value) or "undefined entity" in str(caught.value)
