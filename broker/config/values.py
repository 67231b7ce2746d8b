# SPDX-License-Identifier: LGPL-2.1-or-later
"""The types of the configuration's values with their ranges, and what each of its tables is."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

HostId = Annotated[int, Meta(ge=1, le=2000)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Name = Annotated[str, Meta(min_length=1, max_length=255)]
AbsolutePath = Annotated[str, Meta(pattern="^/", max_length=4096)]
#: A UUID in lower case, or "", as in broker/peers/heartbeat.py and broker/whiteboard/identity.py.
VolumeId = Annotated[str, Meta(pattern=r"^$|^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]
Points = Annotated[int, Meta(ge=0, le=10000)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(gt=0, le=86400)]
SecondsOrNever = Annotated[float, Meta(ge=0, le=86400)]
Interval = Annotated[float, Meta(ge=0.5, le=3600)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """A table of the file."""
