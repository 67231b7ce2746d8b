# SPDX-License-Identifier: LGPL-2.1-or-later
"""The code of the earlier version that hosts of this one must get on with, out of git's history."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The last one that wrote a move of the VM into its slot without its end.
COMMIT = "9eaa995eb24b656ab29fe39dda14bef7ba99e55c"


class NotToBeHad(Exception):
    """The code of the earlier version is not here: why, and what to do."""


def archive(*folders: str) -> bytes:
    """A tar of those folders as they were then; NotToBeHad where the history is not here."""
    command = ["git", "-C", str(ROOT), "archive", COMMIT, *folders]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
        problem = done.stderr.decode(errors="replace").strip()
    except OSError as error:
        done, problem = None, str(error)
    if done is None or done.returncode != 0:
        raise NotToBeHad(
            f"the earlier version {COMMIT[:7]} is not to be had: {problem}; it comes from git's "
            f"history, so work in a clone with all of it (git fetch --unshallow)"
        )
    return done.stdout


def sources(folder: str) -> dict[str, str]:
    """The Python files of a folder by their path."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive(folder))) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".py") else None
            if file is not None:
                found[member.name] = file.read().decode()
    return found
