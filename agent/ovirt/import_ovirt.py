# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent import-ovirt` proposes a VM definition and an answers file for `ha-agent init`, from
the files of oVirt's hosted engine on this host."""

from __future__ import annotations

import base64
import binascii
import configparser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from agent.ovirt.descriptions import from_envelope, from_vm_conf, local, without_vdsm
from agent.ovirt.errors import ImportFault
from agent.ovirt.key_values import key_values, number
from agent.ovirt.machine import domain_xml
from agent.ovirt.ovf_store import DESCRIPTION_BYTES_MAX, opened, read_description
from agent.ovirt.storage_domain import StorageDomain
from agent.setup.toml_text import Value, written
from agent.setup.written import check_place, place
from agent.terminal import in_json
from agent.terminal.errors import CommandError
from broker.config.sections import OVIRT_PAGE
from broker.daemon.errors import why
from broker.daemon.exit_codes import ExitCode

#: The file that the reference's agent uses.
VM_CONF = "/run/ovirt-hosted-engine-ha/vm.conf"
BROKER_CONF = "/etc/ovirt-hosted-engine-ha/broker.conf"


@dataclass(frozen=True, slots=True)
class Proposal:
    """The answers for `init`, the VM's definition, the lines to add to ha-agent.toml by hand, and
    notes for a person."""

    answers: dict[str, Value]
    xml: str
    more: tuple[str, ...]
    notes: tuple[str, ...]


def run(
    conf: str, vm_conf: str | None, ovf: str | None, mount: str, output: str | None, as_json: bool
) -> int:
    """Print the proposal; `output`: write engine.xml and answers.toml there. OK or CommandError."""
    found = propose(conf, vm_conf, ovf, mount)
    answers = "".join(f"{key} = {written(value)}\n" for key, value in found.answers.items())
    if output is not None:
        folder = Path(output)
        for name in ("engine.xml", "answers.toml"):
            if (folder / name).exists():
                raise CommandError(
                    ExitCode.REFUSED, f"{folder / name}: is there already; name another folder"
                )
            check_place(folder / name)
        definition = str((folder / "engine.xml").absolute())
        place(folder / "engine.xml", found.xml, 0o600)
        answers = f"domain = {written(definition)}\n{answers}"
        place(folder / "answers.toml", answers, 0o600)
    if as_json:
        shown = {
            "answers": found.answers,
            "definition": found.xml,
            "more": found.more,
            "notes": found.notes,
        }
        in_json.show(shown)
        return ExitCode.OK
    if output is None:
        print(f"# answers.toml\n{answers}\n# engine.xml\n{found.xml}")
    if found.more:
        print("# to add to ha-agent.toml, after init:", *found.more, sep="\n", end="\n\n")
    for note in found.notes:
        print(f"note: {note}")
    where = output or "FOLDER"
    print(f"next: ha-agent init --storage NEW-FOLDER --answers {where}/answers.toml --dry-run")
    return ExitCode.OK


def propose(conf: str, vm_conf: str | None, ovf: str | None, mount: str) -> Proposal:
    """Read all files; CommandError names the file that cannot be used."""
    values, _ = key_values(_read(conf))
    domain = StorageDomain(
        values.get("domainType", ""), values.get("sdUUID", ""), values.get("storage", ""), mount
    )
    source, xml, notes = _definition(values, vm_conf, ovf, domain)
    answers: dict[str, Value] = {"host-id": number(values, "host_id", 1)}
    if fqdn := values.get("fqdn", ""):
        answers["cluster"] = fqdn
        answers["health-url"] = OVIRT_PAGE.format(fqdn)
    if gateway := values.get("gateway", ""):
        answers["network-targets"] = (gateway,)
    answers["bridge"] = values.get("bridge", "") or "-"
    notes = [f"the VM's definition is from {source}", *notes]
    if domain.is_block:
        notes.append(
            f"the disk is a logical volume of group {domain.uuid}: log in to the target and"
            " activate it on every host, without VDSM"
        )
    else:
        notes.append(
            f"every host must mount {domain.address} at {domain.place} by itself"
            f" ({values.get('mnt_options') or 'no options given'})"
        )
    notes.append(
        "--storage names a new folder: oVirt's lockspace and metadata volumes are left alone, and"
        " serve while you may still go back"
    )
    notes.append(
        "before the first start: hosted-engine --set-maintenance --mode=global,"
        " hosted-engine --vm-shutdown, and stop ovirt-ha-agent and ovirt-ha-broker on every host"
    )
    return Proposal(answers, xml, tuple(_more(values)), tuple(notes))


def _definition(
    values: Mapping[str, str], vm_conf: str | None, ovf: str | None, domain: StorageDomain
) -> tuple[str, str, list[str]]:
    """The source, the domain XML, and notes: from an OVF where one is given, else from vm.conf."""
    if ovf is not None:
        text = read_description(ovf, values.get("vmid", ""))
        return (ovf, *_from_xml(text, ovf, domain))
    path = vm_conf or values.get("conf") or VM_CONF
    text = _read(path)
    vm_values, devices = key_values(text)
    if encoded := vm_values.get("xmlBase64", ""):
        try:
            xml = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise CommandError(ExitCode.FILE, f"{path}: xmlBase64 is not base64") from None
        return (path, *_from_xml(xml, f"{path}: xmlBase64", domain))
    try:
        vm = from_vm_conf(vm_values, devices, domain)
    except (ImportFault, ValueError) as error:
        raise CommandError(ExitCode.FILE, f"{path}: {error}") from None
    return path, domain_xml(vm), _machine_notes(vm.machine)


def _from_xml(text: str, source: str, domain: StorageDomain) -> tuple[str, list[str]]:
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  (the administrator's own file)
        if local(root.tag) == "Envelope":
            vm = from_envelope(root, domain)
            return domain_xml(vm), _machine_notes(vm.machine)
        if root.tag != "domain":
            raise ImportFault(f"holds <{local(root.tag)}>, neither a domain nor an OVF envelope")
        notes = without_vdsm(root, domain)
        kind = root.find("os/type")
        notes += _machine_notes(kind.get("machine", "") if kind is not None else "")
        return ElementTree.tostring(root, encoding="unicode") + "\n", notes
    except (ElementTree.ParseError, ImportFault, ValueError) as error:
        raise CommandError(ExitCode.FILE, f"{source}: {error}") from None


def _machine_notes(machine: str) -> list[str]:
    if "rhel" not in machine:
        return []
    return [f"machine type {machine} is known to EL's QEMU alone; elsewhere: pc or q35"]


def _more(values: Mapping[str, str]) -> list[str]:
    """Lines for ha-agent.toml that no answer of init covers."""
    lines = []
    test = values.get("network_test", "")
    if test == "dns":
        lines.append('[network]\ntest = "dns"\ntargets = []')
    elif test == "tcp" and values.get("tcp_t_address"):
        target = f"{values['tcp_t_address']}:{values.get('tcp_t_port', '')}"
        lines.append(f'[network]\ntest = "tcp"\ntargets = ["{target}"]')
    elif test == "none":
        lines.append('[network]\ntest = "none"')
    return lines + _mail(Path(BROKER_CONF))


def _mail(path: Path) -> list[str]:
    """The reference's mail settings in our form; none where it has no such file."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
        given = dict(parser["email"])
        server = given.get("smtp-server", "")
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError):
        return []
    if not server:
        return []
    addresses = [part.strip() for part in given.get("destination-emails", "").split(",")]
    lines = [
        "[notify.smtp]",
        f"server = {written(server)}",
        f"port = {number(given, 'smtp-port', 25)}",
        'security = "none"',
        f"sender = {written(given.get('source-email', 'root@localhost'))}",
        f"recipients = {written(tuple(filter(None, addresses)))}",
    ]
    return ["\n".join(lines)]


def _read(path: str) -> str:
    try:
        with opened(path) as file:
            return file.read(DESCRIPTION_BYTES_MAX).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = why(error)
        raise CommandError(
            ExitCode.FILE, f"{path}: cannot be read: {reason}; name it by --conf or --vm-conf"
        ) from None
