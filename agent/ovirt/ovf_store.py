# SPDX-License-Identifier: LGPL-2.1-or-later
"""The VM's description out of an OVF_STORE: a tar with an OVF per VM, as the engine writes it."""

from __future__ import annotations

import tarfile
from pathlib import Path

from agent.errors import CommandError
from broker.exit_codes import ExitCode

#: An OVF has some ten kilobytes; a domain XML less.
DESCRIPTION_BYTES_MAX = 4 * 1024 * 1024
MEMBERS_MAX = 10_000


def read_description(path: str, vm_id: str) -> str:
    """The XML in a file, or that of the VM with this id in a tar; CommandError.

    A tar may be the volume itself, or a copy of it: what comes behind its end does no harm.
    """
    try:
        with Path(path).open("rb") as file:
            if not tarfile.is_tarfile(file):
                file.seek(0)
                return file.read(DESCRIPTION_BYTES_MAX).decode()
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                return _of_vm(tar, path, vm_id)
    except (OSError, UnicodeDecodeError, tarfile.TarError) as error:
        raise CommandError(ExitCode.FILE, f"{path}: cannot be read: {error}") from None


def _of_vm(tar: tarfile.TarFile, path: str, vm_id: str) -> str:
    seen = []
    for number, member in enumerate(tar):
        if number >= MEMBERS_MAX:
            break
        name = Path(member.name).name
        if not member.isfile() or not name.endswith(".ovf"):
            continue
        seen.append(name.removesuffix(".ovf"))
        if name == f"{vm_id}.ovf" and member.size <= DESCRIPTION_BYTES_MAX:
            content = tar.extractfile(member)
            assert content is not None
            return content.read(DESCRIPTION_BYTES_MAX).decode()
    known = ", ".join(seen[:10]) or "none"
    raise CommandError(
        ExitCode.FILE, f"{path}: holds no OVF of VM {vm_id}; of others: {known}; set vmid"
    )
