# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent init --share-state` moves the VM's nvram and TPM state to the shared storage.

nvram: the definition names a file there, and the present content is copied. TPM: libvirt keeps the
state in a place of its choice, below /var/lib/libvirt/swtpm; from 10.10 on it accepts a folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from agent.terminal.errors import CommandError
from agent.vm.imported import Imported
from broker.config.sections import StorageSection
from broker.daemon.exit_codes import ExitCode
from broker.vm.domain_facts import parse
from broker.vm.host_local import NVRAM_FOLDER, TPM_FOLDER

#: The first libvirt that accepts <source type='dir' path='…'/> for a TPM's state.
TPM_SOURCE_VERSION = 10_010_000


def state_folder(storage: StorageSection, name: str) -> Path:
    """The folder for it; CommandError where the volumes are devices, which have no folder."""
    folder = Path(storage.whiteboard).parent
    if str(folder).startswith("/dev"):
        raise CommandError(
            ExitCode.REFUSED,
            f"--share-state: {storage.whiteboard} is a device: there is no folder beside it that"
            " every host sees; put the nvram on a shared file system by hand (docs/operations.md)",
        )
    return folder / f"{name}-state"


def with_shared_state(domain: Imported, folder: Path, libvirt_version: int) -> Imported:
    """The definition with its state in that folder, and what was done in the notes.
    `libvirt_version`: as virConnectGetLibVersion counts, 9000000 for 9.0.0."""
    root = parse(domain.xml)
    notes = [*_nvram(root, domain.name, folder), *_tpm(root, folder, libvirt_version)]
    if not notes:
        notes = ["it has neither nvram nor TPM: there is no state to share"]
    xml = ElementTree.tostring(root, encoding="unicode") + "\n"
    return replace(domain, xml=xml, notes=(*domain.notes, *notes))


def _nvram(root: Element, name: str, folder: Path) -> Iterator[str]:
    os_, loader = root.find("os"), root.find("os/loader")
    nvram = root.find("os/nvram")
    is_flash = loader is not None and loader.get("type") == "pflash"
    if os_ is None or (nvram is None and os_.get("firmware") != "efi" and not is_flash):
        return
    if nvram is None:
        nvram = ElementTree.SubElement(os_, "nvram")
    old = Path((nvram.text or "").strip() or f"{NVRAM_FOLDER}/{name}_VARS.fd")
    new = folder / f"{name}_VARS.fd"
    nvram.text = str(new)
    for source in nvram.findall("source"):
        nvram.remove(source)
    nvram.attrib.pop("type", None)
    if new.exists():
        yield f"its nvram is in {new}"
    elif not old.exists():
        yield f"its nvram will be in {new}, made from the template at its first start"
    else:
        _copy(old, new)
        yield f"its nvram is copied from {old} to {new}"


def _tpm(root: Element, folder: Path, libvirt_version: int) -> Iterator[str]:
    backend = root.find("devices/tpm/backend[@type='emulator']")
    if backend is None or backend.find("source") is not None:
        return
    old = Path(TPM_FOLDER) / (root.findtext("uuid") or "").strip()
    if libvirt_version < TPM_SOURCE_VERSION:
        major, minor = libvirt_version // 1_000_000, libvirt_version // 1000 % 1000
        yield (
            f"its TPM state STAYS in {old} on this host alone: libvirt {major}.{minor} takes no"
            " other place (10.10 does); mount a folder of the shared storage there on every host"
            " (docs/operations.md, What lives on one host)"
        )
        return
    new = folder / "tpm"
    ElementTree.SubElement(backend, "source", {"type": "dir", "path": str(new)})
    if old.exists() and not new.exists():
        _copy(old, new)
        yield f"its TPM state is copied from {old} to {new}"
    else:
        yield f"its TPM state is in {new}"


def _copy(old: Path, new: Path) -> None:
    """Copy with owner and mode: QEMU's user must be able to write it."""
    try:
        new.parent.mkdir(mode=0o711, exist_ok=True)
        if old.is_dir():
            shutil.copytree(old, new)
        else:
            shutil.copy2(old, new)
        pairs = [(old, new)]
        pairs += [(each, new / each.relative_to(old)) for each in old.rglob("*")]
        for source, target in pairs:
            found = source.stat()
            os.chown(target, found.st_uid, found.st_gid)
    except OSError as error:
        raise CommandError(ExitCode.FILE, f"copying {old} to {new}: {error}") from None
