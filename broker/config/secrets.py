# SPDX-License-Identifier: LGPL-2.1-or-later
"""The secrets file, and the systemd credentials that are preferred to it.

No error text here quotes what was read: it could be a password.
"""

from __future__ import annotations

import base64
import os
import pwd
import re
import stat
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from broker.config.cluster_key import KEY_BYTES_MIN, ClusterKey
from broker.config.errors import ConfigError
from broker.config.sealed import opened
from broker.config.sections import Config
from broker.daemon.errors import why
from broker.daemon.foreign_toml import tables
from broker.daemon.regular_file import read_text

_Key = Annotated[str, Meta(pattern=r"^[0-9]{1,4}(/[A-Za-z0-9_-]{1,32})?$")]


#: A shorter key can be guessed by whoever sees one signed message.
WEBHOOK_KEY_CHARS_MIN = 16


class NotifySecrets(Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The secrets of the notifications."""

    smtp_password: str = ""
    webhook_key: str = ""


class _Secrets(Struct, forbid_unknown_fields=True, rename="kebab"):
    fence_passwords: dict[_Key, str] = {}
    fence_options: dict[_Key, dict[str, str]] = {}
    notify: NotifySecrets = NotifySecrets()
    cluster_key: str = ""
    cluster_key_accepted: str = ""
    api_token: str = ""


class FenceSecret(Struct, frozen=True):
    """The secret of one fence device."""

    password: str = ""
    options: dict[str, str] = {}

    def __repr__(self) -> str:
        return "FenceSecret(***)"


#: A device's systemd credential (systemd.exec(5), LoadCredential=) has this prefix and its key.
CREDENTIAL_PREFIX = "fence-password."
#: The credentials of the running service, for root's `ha-agent fence test`.
SERVICE_CREDENTIALS = "/run/credentials/ha-agent.service"
#: The credential of the cluster key.
CLUSTER_KEY_CREDENTIAL = "cluster-key"
#: The credential of the second accepted key, while the cluster changes its key.
ACCEPTED_KEY_CREDENTIAL = "cluster-key-accepted"
#: The credential of the token for changes over TCP.
API_TOKEN_CREDENTIAL = "api-token"  # noqa: S105  its name
API_TOKEN_CHARS_MIN = 32
#: The user that the packages run the daemons as.
SERVICE_USER = "ha-agent"
_FENCE_FORM = '[fence-passwords] with "HOST" or "HOST/NAME" = "password"'


def load_fence_secrets(config: Config) -> dict[str, FenceSecret]:
    """The secrets of the fence devices, by their keys; ConfigError where they cannot be read.

    A systemd credential is preferred to the secrets file, and that to what is shared, sealed. The
    file must not be readable by others, and may be missing only where each device that has a user
    has its password elsewhere.
    """
    if not config.fence.device:
        return {}
    credentials = {
        device.key: _credential(CREDENTIAL_PREFIX + device.key.replace("/", "."))
        for device in config.fence.device
    }
    shared = config.sealed.fence_passwords
    lacking = [
        device
        for device in config.fence.device
        if device.username and credentials[device.key] is None and device.key not in shared
    ]
    secrets = _read_secrets(Path(config.daemon.secrets), _FENCE_FORM if lacking else "")

    def password(key: str) -> str:
        name = f"fence-passwords.{key}"
        own = credentials[key] or secrets.fence_passwords.get(key, "")
        return own or (_unsealed(config, name, shared[key]) if key in shared else "")

    return {
        device.key: FenceSecret(
            password(device.key),
            secrets.fence_options.get(device.key, {}),
        )
        for device in config.fence.device
    }


def _unsealed(config: Config, name: str, text: str) -> str:
    """A shared secret, "" where none is; ConfigError where this host cannot open it."""
    return opened(load_cluster_key(config), name, text) if text else ""


def unused_fence_secrets(config: Config) -> int:
    """The number of entries in the secrets file that belong to no device. Their names are not
    reported: a name that fits no device may be a password in the wrong place."""
    secrets = _read_secrets(Path(config.daemon.secrets), "")
    keys = {device.key for device in config.fence.device}
    return len((secrets.fence_passwords.keys() | secrets.fence_options.keys()) - keys)


def _credential(name: str) -> str | None:
    for directory in filter(None, (os.environ.get("CREDENTIALS_DIRECTORY"), SERVICE_CREDENTIALS)):
        path = Path(directory) / name
        try:
            return path.read_text().removesuffix("\n")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{path}: cannot be read; it holds a password in UTF-8") from None
    return None


def load_notify_secrets(config: Config) -> NotifySecrets:
    """Mail password and webhook key, where the configuration needs them; ConfigError where one is
    missing."""
    mail = config.notify.smtp
    with_login, with_webhook = bool(mail.server and mail.username), bool(config.notify.webhook.url)
    if not with_login and not with_webhook:
        return NotifySecrets()
    path = Path(config.daemon.secrets)
    shared = config.sealed
    needs_file = (with_login and not shared.smtp_password) or (
        with_webhook and not shared.webhook_key
    )
    own = _read_secrets(path, "[notify]" if needs_file else "").notify
    secrets = NotifySecrets(
        own.smtp_password or _unsealed(config, "smtp-password", shared.smtp_password),
        own.webhook_key or _unsealed(config, "webhook-key", shared.webhook_key),
    )
    if with_login and not secrets.smtp_password:
        raise ConfigError(f"{path}: notify.smtp-password is missing; notify.smtp.username is set")
    if with_webhook and len(secrets.webhook_key) < WEBHOOK_KEY_CHARS_MIN:
        raise ConfigError(
            f"{path}: notify.webhook-key: at least {WEBHOOK_KEY_CHARS_MIN} characters are needed;"
            " notify.webhook.url is set"
        )
    return secrets


def load_cluster_key(config: Config) -> ClusterKey | None:
    """The key, and the second accepted one, each from its credential or the file; None where there
    is no key, ConfigError where one cannot be used."""
    path = Path(config.daemon.secrets)

    def key(credential_name: str, text: str) -> bytes | None:
        credential = _credential(credential_name)
        if credential is not None:
            return _key(credential.strip(), f"the credential {credential_name}")
        return _key(text, f"{path}: {credential_name}") if text else None

    found = None
    if _credential(CLUSTER_KEY_CREDENTIAL) is None or _credential(ACCEPTED_KEY_CREDENTIAL) is None:
        found = _read_secrets(path, "")
    writes = key(CLUSTER_KEY_CREDENTIAL, found.cluster_key if found else "")
    also = key(ACCEPTED_KEY_CREDENTIAL, found.cluster_key_accepted if found else "")
    if writes is not None:
        return ClusterKey(writes, also)
    if also is not None:
        raise ConfigError(f"{path}: cluster-key-accepted is set, and no cluster-key to sign with")
    return None


def load_api_token(config: Config) -> str | None:
    """The token that allows changes over TCP; None where there is none, ConfigError where it cannot
    be used."""
    credential = _credential(API_TOKEN_CREDENTIAL)
    path = Path(config.daemon.secrets)
    where = f"the credential {API_TOKEN_CREDENTIAL}"
    if credential is None:
        credential, where = _read_secrets(path, "").api_token, f"{path}: api-token"
    token = credential.strip()
    if not token:
        return None
    if len(token) < API_TOKEN_CHARS_MIN or not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(
            f"{where}: is not {API_TOKEN_CHARS_MIN} or more printable characters without blanks;"
            " make one with: openssl rand -hex 32"
        )
    return token


def _key(text: str, where: str) -> bytes:
    try:
        is_hex = re.fullmatch("[0-9A-Fa-f]*", text) is not None
        key = bytes.fromhex(text) if is_hex else base64.b64decode(text, validate=True)
    except ValueError:
        key = b""
    if len(key) < KEY_BYTES_MIN:
        raise ConfigError(
            f"{where}: is not {KEY_BYTES_MIN} bytes or more in hexadecimal or base64; make one"
            " with: openssl rand -hex 32"
        )
    return key


def _service_uid() -> int:
    """The daemons' own user, for root's commands; -1: there is none."""
    try:
        return pwd.getpwnam(SERVICE_USER).pw_uid
    except KeyError:
        return -1


def _read_secrets(path: Path, needed_for: str) -> _Secrets:
    """The parsed file; it may be missing where it is not needed."""
    try:
        found = path.stat()
        mode = found.st_mode
        if found.st_uid not in (0, os.geteuid(), _service_uid()):
            raise ConfigError(
                f"{path}: belongs to user {found.st_uid}, who may change it at any moment;"
                f" chown root {path}"
            )
        if mode & (stat.S_IRWXG | stat.S_IRWXO) & ~stat.S_IRGRP:
            raise ConfigError(f"{path}: others may read it; chmod 0600 (or 0640) {path}")
        return msgspec.convert(tables(read_text(path)), _Secrets)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not needed_for:
            return _Secrets()
        raise ConfigError(
            f"{path}: cannot be read: {why(error)}; it holds {needed_for or 'passwords'}"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValueError, msgspec.ValidationError):
        # The text of the error could hold a password.
        raise ConfigError(
            f"{path}: is not the TOML it should be: {_FENCE_FORM},"
            ' [notify] with smtp-password and webhook-key, before them cluster-key = "key" and'
            ' api-token = "token"'
        ) from None
