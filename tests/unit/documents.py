# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the documents say: sections and tables of a page, queries of the Grafana dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GRAFANA = ROOT / "packaging" / "grafana" / "ha-agent.json"


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of a page, by the heading without its ticks."""
    parts = re.split(r"^#+ +(.*)$", page.read_text(), flags=re.MULTILINE)
    return {
        title.replace("`", ""): text for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def rows(text: str) -> list[list[str]]:
    """The cells of the first table's rows, its head and rule left out."""
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    lines = table.group().splitlines() if table is not None else []
    return [
        [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        for line in lines[2:]
    ]


def anchor(title: str) -> str:
    """A heading's anchor, as the usual forges make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def queries() -> list[tuple[str, str]]:
    """Panel and query, of each query of the dashboard."""
    panels = json.loads(GRAFANA.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]
