# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python docs/generate_schema.py`: writes docs/status.schema.json from broker/wire/status.py.

The JSON Schema (2020-12) of what `ha-agent --status --json` prints. A test fails while the two
differ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import msgspec  # noqa: E402

from broker.wire.status import STATUS_VERSION, Status  # noqa: E402

FILE = ROOT / "docs" / "status.schema.json"


def rendered() -> str:
    """The file's text."""
    schema = msgspec.json.schema(Status)
    schema["$defs"]["Status"]["properties"]["version"] = {"const": STATUS_VERSION}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ha-agent --status --json",
    }
    return json.dumps({**head, **_without_descriptions(schema)}, indent=1) + "\n"


def _without_descriptions(schema: object) -> dict[str, object]:
    """Docstrings are for readers of the code; docs/status.md describes the fields."""
    assert isinstance(schema, dict)
    return {key: _plain(value) for key, value in schema.items()}


def _plain(value: object) -> object:
    match value:
        case dict():
            kept = {
                k: v for k, v in value.items() if not (k == "description" and isinstance(v, str))
            }
            return {key: _plain(one) for key, one in kept.items()}
        case list():
            return [_plain(one) for one in value]
    return value


if __name__ == "__main__":
    FILE.write_text(rendered())
