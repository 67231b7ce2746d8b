# SPDX-License-Identifier: LGPL-2.1-or-later
"""What `init` and `join` do so that a VM can be migrated at once: the host's certificate, and a
libvirt that answers over TLS."""

from __future__ import annotations

from pathlib import Path

from agent.certificates.of_host import HostCertificate, listening_steps
from agent.certificates.places import AUTHORITY_FILE, HOST_FILE, HOST_KEY_FILE
from agent.setup.answers import Answers
from agent.setup.toml_text import Value
from agent.setup.written import Files, place, read_text
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.addresses import is_over_tls
from broker.config.sections import Config
from broker.daemon.exit_codes import ExitCode

TLS_URI, SSH_URI = "qemu+tls://{host}/system", "qemu+ssh://root@{host}/system"


def keys_of_init(uri: str, files: Files, given: Answers) -> dict[str, Value | None]:
    """The keys that name this host's certificate, where `init` makes one. `uri`: of libvirt."""
    if (given.tls or "own") != "own" or not is_over_tls(uri):
        return {}
    return _keys(files)


def certificate_keys(files: Files, source: Path) -> dict[str, Value | None]:
    """The keys that name this host's certificate, where `join` makes one; `source`: the folder
    with the member's files."""
    return _keys(files) if (source / AUTHORITY_FILE).exists() else {}


def _keys(files: Files) -> dict[str, Value | None]:
    return {
        "api.certificate": str(files.folder / HOST_FILE),
        "api.private-key": str(files.folder / HOST_KEY_FILE),
    }


def steps_of_init(config: Config, files: Files, given: Answers) -> list[Step]:
    """Certificates of the cluster's own, unless the answers say otherwise, where they are used;
    CommandError where the answers exclude each other."""
    uri = config.libvirt.migration_uri
    if given.tls == "ssh" and is_over_tls(uri):
        raise CommandError(
            ExitCode.USAGE, f"--tls ssh: does not go with --migration-uri {uri}; leave that out"
        )
    if (given.tls or "own") != "own" or not is_over_tls(uri):
        return []
    return [HostCertificate(config, files.folder).step(of_join=False), *listening_steps(config)]


def steps_of_join(own: Config, files: Files, source: Path) -> list[Step]:
    """The certificate of this host, where the cluster has an authority of its own. `own`: this
    host's future configuration; `source`: the folder with the member's files."""
    text = read_text(source / AUTHORITY_FILE)
    host = HostCertificate(own, files.folder)
    if not is_over_tls(own.libvirt.migration_uri) or not (text or host.authority()):
        return []

    def look() -> str | None:
        if text and host.authority() not in (b"", text.encode()):
            raise CommandError(
                ExitCode.REFUSED,
                f"{host.authority_file}: is another authority than the cluster's; remove it",
            )
        return f"{host.authority_file} is the cluster's" if host.authority() else None

    def act() -> str:
        place(host.authority_file, text, 0o600)
        return f"{host.authority_file} is written"

    return [
        Step("authority", look, f"writing {host.authority_file}", act),
        host.step(of_join=True),
        *listening_steps(own),
    ]
