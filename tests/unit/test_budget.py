# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much memory of a host is not committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.monitors.budget import Committed, Pool, memory_of, pools, wants_huge_pages
from broker.monitors.runner import Unknown
from broker.whiteboard.vm_lines import Memory

NO_PAGES = Pool(0.0, 0.0)


@pytest.mark.parametrize(
    ("available_mb", "taken_mb", "free_mb"),
    [
        (60_000.0, (), 60_000.0 // 64 * 64),
        (60_000.0, (8192.0, 32_768.0), 23_552.0),  # 64 GiB - 1 GiB - 40 GiB: nothing touched yet
        (5000.0, (8192.0,), 4992.0),  # a program beside them has the memory
        (60_000.0, (70_000.0,), 0.0),
    ],
)
def test_what_is_free_is_neither_promised_nor_in_use(
    available_mb: float, taken_mb: tuple[float, ...], free_mb: float
) -> None:
    domains = [Committed(each) for each in taken_mb]
    found = memory_of(Pool(65_536.0, available_mb), NO_PAGES, domains, 1024.0)
    assert found == Memory(65_536.0, free_mb, 0.0)


def test_huge_pages_are_a_pool_of_their_own() -> None:
    domains = [Committed(4096.0), Committed(8192.0, huge=True)]
    found = memory_of(Pool(32_768.0, 30_000.0), Pool(16_384.0, 16_384.0), domains, 0.0)
    assert found == Memory(32_768.0, 28_672.0, 8192.0)


def fill(root: Path, meminfo: str, pages: dict[str, tuple[str, str]]) -> tuple[Path, Path]:
    (root / "meminfo").write_text(meminfo)
    for size, (count, free) in pages.items():
        folder = root / "kernel/mm/hugepages" / f"hugepages-{size}kB"
        folder.mkdir(parents=True)
        (folder / "nr_hugepages").write_text(f"{count}\n")
        (folder / "free_hugepages").write_text(f"{free}\n")
    return root, root


def test_the_kernel_s_figures_are_read(tmp_path: Path) -> None:
    text = "MemTotal:       65536000 kB\nMemFree: 1 kB\nMemAvailable:   32768000 kB\n"
    at = fill(tmp_path, text, {"2048": ("1024", "512"), "1048576": ("4", "3")})
    assert pools(*at) == (Pool(64_000.0 - 6144.0, 32_000.0), Pool(6144.0, 4096.0))


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("MemTotal: 65536000 kB\n", {}),
        ("", {}),
        ("MemTotal: 1 kB\nMemAvailable: 1 kB\n", {"2048": ("many", "0")}),
    ],
)
def test_what_cannot_be_read_is_unknown(
    tmp_path: Path, text: str, pages: dict[str, tuple[str, str]]
) -> None:
    with pytest.raises(Unknown):
        pools(*fill(tmp_path, text, pages))


def test_a_host_without_these_files_is_unknown(tmp_path: Path) -> None:
    with pytest.raises(Unknown):
        pools(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("inside", "is_huge"),
    [
        ("<memoryBacking><hugepages/></memoryBacking>", True),
        ("<memoryBacking><nosharepages/></memoryBacking>", False),
        ("", False),
    ],
)
def test_a_definition_says_whether_its_memory_is_of_huge_pages(inside: str, is_huge: bool) -> None:
    assert wants_huge_pages(f"<domain>{inside}</domain>") is is_huge
    assert not wants_huge_pages("<domain")
