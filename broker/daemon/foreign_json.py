# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decodes JSON that came from outside this process into a type of ours: the only door for it.

A file that a power cut tore, a block of the storage, an answer, a body: any bytes may be in it.
msgspec has an error of its own for most of them, but lets two others through, for a text that is
not UTF-8 and for brackets within brackets; who forgot those died of such a file at each start.
"""

from __future__ import annotations

from typing import Any, TypeVar, overload

import msgspec

_T = TypeVar("_T")


@overload
def decoded(raw: bytes | str, kind: type[_T]) -> _T: ...


@overload
def decoded(raw: bytes | str, kind: Any) -> Any: ...


def decoded(raw: bytes | str, kind: Any) -> Any:
    """The value of that type; msgspec.DecodeError, and no other error, where there is none."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except UnicodeDecodeError:
        raise msgspec.DecodeError("it is not UTF-8") from None
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
