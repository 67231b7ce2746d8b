# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that a new VM could get: what the kernel calls available (proc(5), MemAvailable), or the
free huge pages where the VM wants those (the kernel's admin-guide/mm/hugetlbpage.rst)."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from xml.etree import ElementTree

from broker.monitors.runner import Sampled, Unknown

_AVAILABLE = re.compile(r"^MemAvailable:\s+([0-9]{1,18}) kB$", re.MULTILINE)
_DEFAULT_PAGE = re.compile(r"^Hugepagesize:\s+([0-9]{1,9}) kB$", re.MULTILINE)


class MemoryMonitor(Sampled):
    """MiB available. `hugepage_kb`: page size of the VM's definition, None: ordinary memory."""

    name = "memory"
    unit = "MiB"
    deadline_s = 5.0

    def __init__(
        self,
        hugepage_kb: int | None = None,
        interval_s: float = 5.0,
        proc: Path = Path("/proc"),
        sys: Path = Path("/sys"),
    ) -> None:
        self.interval_s = interval_s
        self._hugepage_kb = hugepage_kb
        self._meminfo = proc / "meminfo"
        self._pages = sys / "kernel/mm/hugepages" / f"hugepages-{hugepage_kb}kB/free_hugepages"

    async def sample(self) -> float:
        if self._hugepage_kb is not None:
            text = _read(self._pages).strip()
            if not text.isdigit():
                raise Unknown(f"{self._pages}: {text[:40]!r} is no number")
            return int(text) * self._hugepage_kb / 1024
        found = _AVAILABLE.search(_read(self._meminfo))
        if found is None:
            raise Unknown(f"{self._meminfo}: no line MemAvailable")
        return int(found.group(1)) / 1024


def hugepage_kb(definition: str, proc: Path = Path("/proc")) -> int | None:
    """The page size that a VM's definition wants for its memory; None: ordinary pages.

    libvirt's formatdomain, "Memory backing": <hugepages/> without a <page> is the host's
    default size (proc(5), Hugepagesize). A definition that cannot be read counts as one with
    ordinary pages: the agent refuses a definition that is no XML.
    """
    try:
        root = ElementTree.parse(definition).getroot()  # noqa: S314  (root's own file)
    except (OSError, ElementTree.ParseError, ValueError, LookupError):
        return None  # LookupError and ValueError: an unknown encoding
    wanted = root.find("memoryBacking/hugepages")
    if wanted is None:
        return None
    page = wanted.find("page")
    if page is not None:
        size, unit = page.get("size", ""), page.get("unit", "KiB").lower()
        factor = {"kib": 1, "k": 1, "mib": 1024, "m": 1024, "gib": 2**20, "g": 2**20}.get(unit)
        if size.isdigit() and factor is not None:
            return int(size) * factor
    with contextlib.suppress(Unknown):
        found = _DEFAULT_PAGE.search(_read(proc / "meminfo"))
        if found is not None:
            return int(found.group(1))
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Unknown(f"{path}: {error}") from None
