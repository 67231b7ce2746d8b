# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decodes TOML that a person wrote, with one error: the only door for it.

tomllib lets two others through, for brackets within brackets and for a number of more digits than
Python converts.
"""

from __future__ import annotations

import tomllib
from typing import Any


def tables(text: str) -> dict[str, Any]:
    """The tables in a text; tomllib.TOMLDecodeError, and no other error, where it is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise tomllib.TOMLDecodeError("a number in it is too long") from None
    except RecursionError:
        raise tomllib.TOMLDecodeError("it is nested too deeply") from None
