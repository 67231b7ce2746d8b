# SPDX-License-Identifier: LGPL-2.1-or-later
"""What libvirt-guests would do to the VM, and the line that mends it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from agent.vm.libvirt_guests import problem

DEBIAN = 'ON_BOOT="ignore"\nON_SHUTDOWN="shutdown"\n'
UPSTREAM = "ON_BOOT=start\nON_SHUTDOWN=suspend\n"


def look(
    tmp_path: Path, script: str | None, settings: str | None, enabled: bool = True
) -> tuple[str, str]:
    """A host with this script and settings file."""
    tool, place = tmp_path / "libvirt-guests.sh", tmp_path / "libvirt-guests"
    link = tmp_path / "libvirt-guests.service"
    for path, text in ((tool, script), (place, settings)):
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
    link.unlink(missing_ok=True)
    if enabled:
        link.symlink_to("/nowhere")
    return problem((place,), (tool,), link)


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        (DEBIAN, None),
        (DEBIAN, "#ON_SHUTDOWN=suspend\n"),
        (UPSTREAM, "ON_BOOT=ignore\nON_SHUTDOWN='shutdown' # wait for them\n"),
        ("", "ON_BOOT=start\nON_BOOT=ignore\nON_SHUTDOWN=shutdown\n"),
    ],
)
def test_one_that_leaves_the_vm_alone_is_no_problem(
    script: str, settings: str | None, tmp_path: Path
) -> None:
    assert look(tmp_path, script, settings) == ("", "")


def test_one_that_is_not_there_or_not_enabled_is_none_either(tmp_path: Path) -> None:
    assert look(tmp_path, None, UPSTREAM) == ("", "")
    assert look(tmp_path, UPSTREAM, None, enabled=False) == ("", "")


@pytest.mark.parametrize(
    ("script", "settings", "names"),
    [
        (UPSTREAM, None, {"ON_BOOT", "ON_SHUTDOWN"}),
        ("", None, {"ON_BOOT", "ON_SHUTDOWN"}),
        (DEBIAN, "ON_SHUTDOWN=suspend\n", {"ON_SHUTDOWN"}),
        (DEBIAN, "ON_BOOT=\n", {"ON_BOOT"}),
    ],
)
def test_what_is_bad_is_named_and_the_line_to_type_mends_it(
    script: str, settings: str | None, names: set[str], tmp_path: Path
) -> None:
    """libvirt's own defaults count where nothing is said."""
    text, fix = look(tmp_path, script, settings)
    for name in ("ON_BOOT", "ON_SHUTDOWN"):
        assert (name in text) is (name in names) is (name in fix)
    subprocess.run(["/bin/sh", "-c", fix], check=True)
    tool, place = tmp_path / "libvirt-guests.sh", tmp_path / "libvirt-guests"
    assert problem((place,), (tool,), tmp_path / "libvirt-guests.service") == ("", "")
