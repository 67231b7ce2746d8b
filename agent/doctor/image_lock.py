# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether QEMU's image lock keeps a second QEMU out on a storage: really tried, on a scratch image
beside the VM's disk, which is removed."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from agent.doctor.host import Found
from broker.daemon.errors import why

_IMAGE_BYTES = 1 << 20
#: A QEMU that opens a file of a storage that answers needs a moment; else the whole check is left.
_DEADLINE_S = 5.0
_NOT_TRIED = "QEMU's image lock was not tried in"


def image_lock(folder: Path, emulator: str) -> Found:
    """The finding on the storage that the folder lies on. `emulator`: the VM's."""
    try:
        with _scratch(folder) as image, _opened(image, emulator):
            locked = _can_write(image)
        again = _can_write_anew(folder)
    except FileNotFoundError as error:
        yield "warn", f"{_NOT_TRIED} {folder}: {why(error)}", "qemu-io: the package qemu-utils"
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield "warn", f"{_NOT_TRIED} {folder}: {error}", ""
        return
    if not again:
        text = f"QEMU cannot open an image in {folder}, though nobody has it"
        yield "fail", text, "qemu-img info IMAGE there shows why"
    elif locked:
        text = f"a second QEMU opens an image in {folder} that the first one writes to"
        yield "warn", text, "file locks do not work there: the lease alone protects the VM"
    else:
        yield "ok", f"QEMU's image lock in {folder} keeps a second QEMU out", ""


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    image = folder / f".ha-agent-doctor-{os.uname().nodename}-{os.getpid()}.raw"
    with image.open("xb") as file:
        file.truncate(_IMAGE_BYTES)
    try:
        yield image
    finally:
        image.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(image: Path, emulator: str) -> Iterator[None]:
    """A QEMU has the image for a disk of its guest, which does not run."""
    words = [
        *(emulator, "-machine", "q35", "-accel", "tcg", "-m", "16", "-S", "-nodefaults"),
        *("-display", "none", "-qmp", "stdio"),
        *("-blockdev", f"driver=file,filename={image},node-name=disk"),
        *("-device", "virtio-blk-pci,drive=disk"),
    ]
    with subprocess.Popen(  # noqa: S603
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            # QEMU greets early, and carries an order out once its devices are there.
            process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
            process.stdin.flush()
            said = b"{}"
            while said and b'"return"' not in said:
                said = process.stdout.readline()
            if not said:
                raise OSError(f"{emulator} ended")
            yield
        finally:
            process.kill()


def _can_write(image: Path) -> bool:
    """Whether one more QEMU gets the image for writing."""
    words = ["qemu-io", "-f", "raw", "-c", "length", str(image)]
    done = subprocess.run(  # noqa: S603
        words, capture_output=True, stdin=subprocess.DEVNULL, timeout=_DEADLINE_S, check=False
    )
    return done.returncode == 0


def _can_write_anew(folder: Path) -> bool:
    with _scratch(folder) as image:
        return _can_write(image)
