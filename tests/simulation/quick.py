# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes a run quick without making it another one; `make_quick`, once, before the first run.

1. Frozen objects are made as others are. `dataclass(frozen=True)` sets each field past its own
   guard, by a call; a run makes millions of them. The guard is gone here: who changes a frozen
   object is found by mypy and by the unit tests, which run without this.
2. All hosts of a simulation read the same bytes: what is pure, and depends on them alone, is done
   once for all.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

from broker.config import cluster_key
from broker.whiteboard import slot

#: Whose dataclasses.
ROOMS = ("scoring", "broker", "agent")
#: How many slots and signatures are remembered.
REMEMBERED = 4096
_done: list[bool] = []


def make_quick() -> None:
    """Make the types of all loaded modules of ROOMS quick; does nothing a second time."""
    if _done:
        return
    _done.append(True)
    slot.decode_slot = functools.lru_cache(REMEMBERED)(slot.decode_slot)
    cluster_key._mac = functools.lru_cache(REMEMBERED)(cluster_key._mac)
    for name, module in list(sys.modules.items()):
        if name.split(".", 1)[0] in ROOMS:
            for made in list(vars(module).values()):
                if isinstance(made, type) and made.__module__ == name:
                    _thaw(made)


def _thaw(made: type[Any]) -> None:
    settings = made.__dict__.get("__dataclass_params__")
    if settings is None or not settings.frozen or not settings.init:
        return
    space: dict[str, Any] = {"__annotations__": {}}
    if hasattr(made, "__post_init__"):
        space["__post_init__"] = None
    for each in dataclasses.fields(made):
        space["__annotations__"][each.name] = each.type
        space[each.name] = dataclasses.field(
            default=each.default,
            default_factory=each.default_factory,
            init=each.init,
            kw_only=each.kw_only,
        )
    like: Any = dataclasses.dataclass(repr=False, eq=False)(type(made.__name__, (), space))
    made.__init__ = like.__init__
    for guard in ("__setattr__", "__delattr__"):
        if guard in made.__dict__:
            delattr(made, guard)
