# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decodes the status's JSON by the standard library, for the text only: into objects whose fields
have the names of broker/wire/status.py.

Decoding into the real structures takes four times as long as the rest of
`ha-agent --status`, nearly all of it for imports (docs/decisions/0032). A test holds the two
decoders to the same text. A broker of another version may lack a field: that is `Lacking`, and
then the real structures, which have the defaults, are used.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from broker.daemon.errors import HaError

if TYPE_CHECKING:
    from broker.wire.status import Status


class Lacking(HaError):
    """The answer has no field of this name."""


class _Fields:
    """A JSON object whose keys are read as attributes."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.__dict__ = fields

    def __getattr__(self, name: str) -> Any:
        raise Lacking(name)


def read(raw: bytes) -> Status:
    """An object with the fields of a Status; host ids and slot numbers stay strings. Raises
    Lacking, or ValueError where it is no JSON object."""
    found = json.loads(raw, object_hook=_Fields)
    if not isinstance(found, _Fields):
        raise ValueError("not a JSON object")
    # These fields are tables with arbitrary keys, not objects.
    for name in ("hosts", "bad_slots", "monitors", "vm_bounds"):
        setattr(found, name, vars(getattr(found, name)))
    found.notify.transports = vars(found.notify.transports)
    if found.what_ran is not None:
        found.what_ran.disks = vars(found.what_ran.disks)
    for vm in found.vms:
        vm.barred = vars(vm.barred)
    return cast("Status", found)
