# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much memory of this host is not committed to any domain.

A VM that boots has not touched all its memory yet: of 8 GiB perhaps 1 GiB. So the host subtracts
the most that its domains may take, foreign domains included; if less memory is really free, that
counts. Huge pages are a pool of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from broker.monitors.runner import Unknown
from broker.whiteboard.vm_lines import Memory

#: Free memory is rounded down to a multiple of this; smaller changes are noise.
STEP_MB = 64
_LINE = re.compile(r"^(\w+):\s+([0-9]{1,18}) kB$", re.MULTILINE)
_PAGES = re.compile(r"hugepages-([0-9]{1,9})kB")


@dataclass(frozen=True, slots=True)
class Committed:
    """What a running domain may take at most, MiB; `huge`: of huge pages."""

    memory_mb: float
    huge: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """Memory in MiB: all of it, and what is free."""

    total_mb: float
    free_mb: float


def memory_of(
    ordinary: Pool, huge: Pool, domains: Iterable[Committed], reserve_mb: float
) -> Memory:
    """The budget of a host. `ordinary`: without huge pages; `reserve_mb`: for the host itself."""
    taken_mb = {False: 0.0, True: 0.0}
    for domain in domains:
        taken_mb[domain.huge] += domain.memory_mb
    free_mb = min(ordinary.free_mb, ordinary.total_mb - reserve_mb - taken_mb[False])
    free_huge_mb = min(huge.free_mb, huge.total_mb - taken_mb[True])
    return Memory(ordinary.total_mb, _rounded(free_mb), _rounded(free_huge_mb))


def _rounded(mb: float) -> float:
    return max(0.0, mb // STEP_MB * STEP_MB)


def pools(proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> tuple[Pool, Pool]:
    """This host's ordinary memory (proc(5), meminfo), and its huge pages of all sizes (the
    kernel's admin-guide/mm/hugetlbpage.rst); Unknown."""
    meminfo = proc / "meminfo"
    try:
        values = {name: int(kb) / 1024 for name, kb in _LINE.findall(meminfo.read_text())}
        all_mb, available_mb = values["MemTotal"], values["MemAvailable"]
    except (OSError, UnicodeDecodeError) as error:
        raise Unknown(f"{meminfo}: {error}") from None
    except KeyError as error:
        raise Unknown(f"{meminfo}: no line {error.args[0]}") from None
    total_mb = free_mb = 0.0
    for folder in sorted((sys / "kernel/mm/hugepages").glob("hugepages-*kB")):
        if (size := _PAGES.fullmatch(folder.name)) is not None:
            page_mb = int(size[1]) / 1024
            total_mb += page_mb * _count(folder / "nr_hugepages")
            free_mb += page_mb * _count(folder / "free_hugepages")
    return Pool(all_mb - total_mb, available_mb), Pool(total_mb, free_mb)


def _count(path: Path) -> int:
    try:
        text = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Unknown(f"{path}: {error}") from None
    if not (text.isascii() and text.isdigit()):
        raise Unknown(f"{path}: {text[:40]!r} is no number")
    return int(text)


def wants_huge_pages(xml: str) -> bool:
    """Whether the memory of the domain with this definition comes from huge pages."""
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314  (libvirt's own text)
    except (ElementTree.ParseError, ValueError):
        return False
    return root.find("memoryBacking/hugepages") is not None
