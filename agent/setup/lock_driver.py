# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whether libvirt's configuration names the sanlock lock driver: without it nothing is safe."""

from __future__ import annotations

import re
from pathlib import Path

from agent.errors import CommandError
from agent.setup.steps import Step
from broker.config import Config
from broker.exit_codes import ExitCode

LOCK_MANAGER = re.compile(r'^\s*lock_manager\s*=\s*"sanlock"', re.MULTILINE)


def lock_driver_problem(config: Config) -> tuple[str, str]:
    """What is wrong with it and what to type; both empty where it is in order."""
    path = config.libvirt.qemu_conf
    mend = f"echo 'lock_manager = \"sanlock\"' >> {path}, then restart libvirt (virtqemud)"
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return f"{path} is not there: libvirt's QEMU driver is not installed, or elsewhere", mend
    except (OSError, UnicodeDecodeError) as error:
        return f"{path} cannot be read: {error}", "run it as root"
    if not LOCK_MANAGER.search(text):
        return f"{path}: libvirt runs without the sanlock lock driver", mend
    return "", ""


def lock_driver_step(config: Config) -> Step:
    """Looks only: libvirt's configuration is the administrator's."""

    def look() -> str:
        problem, mend = lock_driver_problem(config)
        if problem:
            raise CommandError(ExitCode.LOCK_DRIVER, f"{problem}; {mend}")
        return f"{config.libvirt.qemu_conf} names sanlock"

    return Step("lock-driver", look, "", look)
