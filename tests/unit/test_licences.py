# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemons load: under which licence, and not older than they need, from each of the
packages. Without a network: what is installed says its own licence."""

from __future__ import annotations

import importlib.metadata as metadata
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.unit.documents import ROOT

LICENCES: dict[str, str] = tomllib.loads((ROOT / "packaging" / "licences.toml").read_text())
TARGETS = tomllib.loads((ROOT / "packaging" / "targets.toml").read_text())
SPEC = (ROOT / "packaging" / "rpm" / "ha-agent.spec").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {one.name: one for one in map(Requirement, PROJECT["dependencies"])}
#: How a distribution's metadata call what SPDX calls otherwise: older ones have a classifier or
#: words of their own.
ALSO = {
    "Apache-2.0": ("Apache Software License", "Apache 2.0", "Apache License, Version 2.0"),
    "BSD-2-Clause": ("BSD License",),
    "BSD-3-Clause": ("BSD License",),
    "ISC": ("ISC License (ISCL)",),
    "LGPL-3.0-only": ("GNU Lesser General Public License v3 (LGPLv3)",),
    "MIT": ("MIT License",),
    "PSF-2.0": ("Python Software Foundation License",),
}
#: Debian's names and versions where they are others: "0.1." stands before regex's.
DEBIAN_VERSION = {"regex": lambda wanted: "0.1." + "{:04}{:02}{:02}".format(*wanted.release)}
RPM_NAME = {"dnspython": "dns"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def loaded() -> dict[str, metadata.Distribution]:
    """What is installed of all that the project needs, and that these need."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(NEEDED)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        wanted = [Requirement(text) for text in found[name].requires or ()]
        waiting += [
            one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    return found


def names_of(distribution: metadata.Distribution) -> str:
    """All that a distribution says of its licence."""
    given = distribution.metadata
    kinds = [line.rpartition(" :: ")[2] for line in given.get_all("Classifier") or ()]
    named = [given[key] for key in ("License-Expression", "License") if key in given]
    return " | ".join([*named, *kinds])


@pytest.mark.parametrize("name", sorted(loaded()))
def test_what_is_loaded_has_the_licence_that_was_read(name: str) -> None:
    said = names_of(loaded()[name])
    assert name in LICENCES, f"{name} is new: read its licence, then packaging/licences.toml"
    for part in re.split(r" AND | OR ", LICENCES[name]):
        words = (part, *ALSO.get(part, ()))
        assert any(word in said for word in words), f"{name}: {part} is not in: {said}"


def test_no_licence_is_one_that_ours_cannot_be_with() -> None:
    spoken = {part for text in LICENCES.values() for part in re.split(r" AND | OR ", text)}
    assert not [each for each in spoken if each.startswith(("AGPL", "SSPL", "LicenseRef"))]
    assert spoken - {"LGPL-2.1-or-later", "GPL-2.0-or-later", "CNRI-Python"} == set(ALSO)


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_what_is_installed_is_not_older_than_what_is_needed(name: str) -> None:
    assert NEEDED[name].specifier.contains(loaded()[normal(name)].version)


@pytest.mark.parametrize("name", sorted(NEEDED))
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_each_package_asks_for_what_is_new_enough(target: str, name: str) -> None:
    """Bundled, with its pin, or of the distribution, with its least version."""
    (least,) = (Version(each.version) for each in NEEDED[name].specifier)
    if name in TARGETS[target]["bundled"]:
        lines = (ROOT / "packaging" / f"vendor-requirements.{target}.txt").read_text()
        pin = re.search(rf"^{re.escape(name)}==(\S+)", lines, re.MULTILINE)
        assert pin is not None and Version(pin[1]) >= least
    elif target == "rpm":
        wanted = rf"^(?:Requires|Recommends): +python3-{RPM_NAME.get(name, name)} >= (\S+)$"
        stated = re.search(wanted, SPEC, re.MULTILINE)
        assert stated is not None, f"ha-agent.spec: python3-{name} >= {least}"
        assert Version(stated[1]) >= least
    else:
        version = DEBIAN_VERSION.get(name, str)(least)
        assert f"python3-{name} (>= {version})" in TARGETS[target]["depends"]
