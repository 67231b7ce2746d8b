# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes and renews this host's certificate, and has libvirt answer over TLS with it.

Rules:

1. A site's own certificates are never written over: where the authority that libvirt trusts is not
   one of ours, nothing is done.
2. What runs with a certificate goes on with it until it ends: a renewal that libvirt does not
   notice costs nothing for months.
"""

from __future__ import annotations

import datetime
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.certificates.authority import (
    NoAuthority,
    certificate_of,
    is_ours,
    issue,
    new_authority,
    why_not_good,
)
from agent.certificates.places import AUTHORITY_FILE, Place, host_places, names_of, write
from agent.terminal.errors import CommandError
from agent.terminal.steps import Step
from broker.config.host_certificates import AUTHORITY, ends_of
from broker.config.sections import Config
from broker.daemon.atomic_file import write_atomically
from broker.daemon.exit_codes import ExitCode

#: Who serves libvirt's TLS: its modular daemon, or the one for all.
MODULAR, MONOLITHIC = "virtproxyd", "libvirtd"
PATIENCE_S = 60.0
#: Where libvirt looks for certificates by itself.
USUAL_PKI = "/etc/pki"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """This host's certificate. `folder`: of its configuration. `now`: the time, UTC."""

    config: Config
    folder: Path
    now: Callable[[], datetime.datetime] = _now

    @property
    def authority_file(self) -> Path:
        return self.folder / AUTHORITY_FILE

    @property
    def places(self) -> list[Place]:
        return host_places(self.config, self.folder)

    def foreign(self) -> str:
        """The file of the authority that a site has put here; "": there is none."""
        path = Path(self.config.libvirt.pki_dir) / AUTHORITY
        try:
            return "" if is_ours(path.read_bytes()) else str(path)
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise _file_error(path, error) from None

    def authority(self) -> bytes:
        """The cluster's authority; empty where this host has none. CommandError."""
        try:
            return self.authority_file.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _file_error(self.authority_file, error) from None

    def why_anew(self) -> str:
        """Why the certificate is to be made; "": it is good. CommandError."""
        authority = self.authority()
        if not authority:
            return "there is no authority yet"
        try:
            trusted = certificate_of(authority)
            for place in self.places:
                found = place.path.read_bytes()
                if place.what == "authority" and found != trusted:
                    return f"{place.path} is another authority's"
                if place.what == "certificate":
                    why = why_not_good(found, authority, names_of(self.config), self.now())
                    if why:
                        return f"{place.path}: {why}"
        except FileNotFoundError as error:
            return f"{error.filename} is not there"
        except OSError as error:
            raise _file_error(Path(error.filename), error) from None
        except NoAuthority as error:
            raise CommandError(ExitCode.FILE, f"{self.authority_file}: {error}") from None
        return ""

    def make(self, may_found: bool) -> str:
        """Make the certificate, and the authority too where there is none and `may_found`; says
        what was done. CommandError."""
        authority = self.authority()
        if not authority:
            if not may_found:
                raise CommandError(ExitCode.FILE, _no_authority(self.authority_file))
            authority = new_authority(self.config.cluster.name, self.now())
        names = names_of(self.config)
        try:
            issued = issue(authority, self.config.host_name, names, self.now())
            write_atomically(self.authority_file, authority, 0o600)
            write(self.places, issued, certificate_of(authority))
        except OSError as error:
            raise _file_error(Path(error.filename or self.folder), error) from None
        except NoAuthority as error:
            raise CommandError(ExitCode.FILE, f"{self.authority_file}: {error}") from None
        return f"made for {', '.join(names)}; {self.ends()}"

    def ends(self) -> str:
        """When the certificate ends, in words."""
        path = next(each.path for each in self.places if each.what == "certificate")
        found = ends_of(path)
        days = found.days_left(self.now().timestamp())
        return f"{path}: {found.problem}" if days is None else f"ends in {days} days"

    def step(self, of_join: bool) -> Step:
        """The step of `init`, which makes the authority too; or of `join`, before which the
        cluster's is written."""

        def look() -> str | None:
            if foreign := self.foreign():
                mend = (
                    "move it away and join again"
                    if of_join
                    else "to use the site's certificates: --tls site"
                )
                raise CommandError(
                    ExitCode.REFUSED,
                    f"{foreign}: is an authority of this site, and is left alone; {mend}",
                )
            return None if self.why_anew() else f"this host's {self.ends()}"

        return Step(
            "certificates",
            look,
            f"making them in {self.folder} and below {self.config.libvirt.pki_dir}",
            lambda: self.make(may_found=not of_join),
        )

    def undo_step(self) -> Step:
        """The step of `leave --undo`: libvirt has no certificate of the cluster any more, and does
        not listen with it. What lies beside the configuration stays: `join` uses it again."""
        root = Path(self.config.libvirt.pki_dir)
        ours = [each.path for each in self.places if each.path.is_relative_to(root)]

        def look() -> str | None:
            if self.foreign() or not any(path.exists() for path in ours):
                return f"{root}: nothing of ours"
            return None

        def act() -> str:
            closed = _stop_listening() if self.config.libvirt.pki_dir == USUAL_PKI else ""
            for path in ours:
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    raise _file_error(path, error) from None
            return f"those below {root} are removed{closed}"

        return Step("certificates", look, f"removing the cluster's below {root}", act)


def _no_authority(path: Path) -> str:
    return (
        f"{path}: is not there, so this host gets no certificate; copy it from a member (root's"
        " alone, 0600), then: ha-agent certificates renew"
    )


def _file_error(path: Path, error: OSError) -> CommandError:
    return CommandError(ExitCode.FILE, f"{path}: {error.strerror}; run as root")


# --- libvirt --------------------------------------------------------------------------------


def listening_steps(config: Config) -> list[Step]:
    """Have libvirt answer over TLS by the socket of systemd's that its package brings; none where
    its certificates are elsewhere, and so are its settings."""
    return [_listening_step()] if config.libvirt.pki_dir == USUAL_PKI else []


def _listening_step() -> Step:

    def look() -> str | None:
        server = _server()
        if not server:
            return "systemd has no socket for it here: have libvirt listen for TLS (listen_tls)"
        if _systemctl("is-active", f"{server}-tls.socket").returncode == 0:
            return f"{server}-tls.socket is there"
        return None

    def act() -> str:
        server = _server()
        commands: list[tuple[str, ...]] = [("enable", "--now", f"{server}-tls.socket")]
        if server == MONOLITHIC:
            # A socket is added only while its service is down. No VM notices.
            running = _systemctl("is-active", server).returncode == 0
            commands.insert(0, ("stop", f"{server}.service"))
            commands += [("start", f"{server}.service")] if running else []
        for command in commands:
            _must_systemctl(*command)
        return f"{server}-tls.socket listens at tcp 16514, also after a boot"

    return Step("libvirt-tls", look, "having libvirt listen for TLS", act)


def _stop_listening() -> str:
    """Have libvirt listen for TLS no more; says so. No VM notices. CommandError."""
    server = _server()
    if not server:
        return "; have libvirt listen for TLS no more (listen_tls)"
    # A daemon that runs keeps the socket that it was given.
    for command in (
        ("disable", "--now", f"{server}-tls.socket"),
        ("try-restart", f"{server}.service"),
    ):
        _must_systemctl(*command)
    return f"; {server}-tls.socket is disabled"


def _server() -> str:
    """The daemon whose TLS socket systemd knows here; "": none."""
    if not Path("/run/systemd/system").is_dir():
        return ""
    modular = _systemctl("is-enabled", "virtqemud.socket").returncode == 0
    for server in (MODULAR, MONOLITHIC) if modular else (MONOLITHIC,):
        if _systemctl("cat", f"{server}-tls.socket").returncode == 0:
            return server
    return ""


def update_libvirt(config: Config) -> str:
    """Have libvirt read its certificate anew; says what came of it."""
    server = _server() if config.libvirt.pki_dir == USUAL_PKI else ""
    if not server or _systemctl("is-active", server).returncode != 0:
        return "libvirt reads it when it is started"
    if shutil.which("virt-admin") is not None:
        words = ["virt-admin", "-c", f"{server}:///system", "server-update-tls", server]
        if _done(*words).returncode == 0:
            return f"{server} uses it now"
    return f"{server} uses it from its next start: systemctl restart {server}"


def reload_broker(config: Config) -> None:
    """Have our own server read it anew, where it runs."""
    if config.api.tls_listen and Path("/run/systemd/system").is_dir():
        _systemctl("try-reload-or-restart", "ha-broker.service")


def _must_systemctl(*words: str) -> None:
    done = _systemctl(*words)
    if done.returncode != 0:
        raise CommandError(ExitCode.FAILED, f"systemctl {' '.join(words)}: {done.stderr.strip()}")


def _systemctl(*words: str) -> subprocess.CompletedProcess[str]:
    return _done("systemctl", *words)


def _done(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603  our own words
        words, capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL
    )
