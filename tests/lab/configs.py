# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration files of a host: libvirt's, ours, and the VM's definition."""

from __future__ import annotations

import json
from collections.abc import Iterable

from broker.lockspace.rejoin import own_name
from broker.vm.qemu_conf import LOCK_MANAGER_LINE, NO_DISK_LEASES_LINE

from . import certificates, vms
from .guest import HEALTH_PATH, GuestImage
from .layout import (
    API_PORT,
    BMC_PORT,
    BMC_USER,
    CLUSTER_ID,
    GATEWAY,
    GUEST_ADDRESS,
    HOST_BRIDGE,
    LEASES_ID,
    LOCKSPACE,
    VM_NAME,
    WHITEBOARD_ID,
    HostLayout,
    Layout,
)
from .settings import Settings
from .storages import ceph, gluster
from .storages.kinds import CEPH, GLUSTER

QEMU_CONF = """{lock_manager}
security_driver = "none"
user = "root"
group = "root"
dynamic_ownership = 0
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
migrate_tls_x509_cert_dir = "{pki}"
migrate_tls_x509_verify = 1
"""

#: What `ha-agent init` asks for, and whose sanlock runs: nothing that a real host has not.
QEMU_SANLOCK_CONF = """{no_disk_leases}
user = "root"
group = "root"
"""

# A distinct host_uuid: a migration between hosts with equal ones is refused.
LIBVIRTD_CONF = """host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_rw_perms = "0700"
log_outputs = "2:stderr"
listen_tls = 1
listen_tcp = 0
key_file = "{pki}/serverkey.pem"
cert_file = "{pki}/servercert.pem"
ca_file = "{pki}/cacert.pem"
"""

VOLUME_IDS = f"""whiteboard-id = "{WHITEBOARD_ID}"
leases-id = "{LEASES_ID}"
"""

AGENT_CONFIG = """[cluster]
name = "lab"
{cluster_id}

[host]
id = {id}
name = "{name}"
system-uuid = "{uuid}"

[storage]
whiteboard = "{lab.whiteboard}"
leases = "{lab.leases}"
{registry}{volume_ids}lockspace = "{lockspace}"
io-timeout = {io_timeout_s}

[vm]
name = "{vm_name}"
definition = "{definition}"

[libvirt]
uri = "qemu:///system"
qemu-conf = "/etc/libvirt/qemu.conf"
{passthrough}{migration}
[network]
test = "ping"
targets = ["{gateway}"]
bridge = "{bridge}"

[health]
url = "http://{guest_address}{health_path}"
expect = "DB Up"

[api]
listen = ["{address}:{api_port}"]

[daemon]
socket = "/run/ha-agent/broker.sock"
state-dir = "{directory}/state"
secrets = "{secrets}"
"""

#: By a socket of the target's libvirt that both hosts see.
MIGRATION_BY_SOCKET = """\
migration-uri = "qemu+unix:///system?socket={lab.directory}/hosts/{{host}}/run/libvirt/libvirt-sock"
migration-data-uri = "unix://{lab.array}/migrate-{{host}}.sock"
"""

#: Over the hosts' network, as between machines: libvirt's TLS, and QEMU's for the memory.
MIGRATION_BY_TLS = f"""\
migration-uri = "qemu+tls://{{host}}/system?pkipath={certificates.FOLDER}"
migration-data-uri = "tcp://{{host}}"
migration-tls = true
"""

FENCE_DEVICE = """
[[fence.device]]
host = {id}
type = "ipmi"
address = "{address}"
port = {port}
username = "{user}"
"""

#: Added to the shared lab, where one test follows the other: hosts are switched off again and
#: again, each time for another reason, and a host whose VM died is soon a standby again.
HASTE = """
[fence]
per-hour = 100

[timing]
fence-backoff = 0.1
unexpected-down = 20
"""

#: Where a host's commands find the name of its sanlock, which is started with it (-e): a folder
#: that each host has for itself.
SANLOCK_CONF = "/etc/libvirt/sanlock.conf"


def sanlock_name(host: HostLayout) -> str:
    """The fixed name of a host's sanlock, as `ha-agent init` would give it."""
    return own_name(str(host.system_uuid)) or str(host.system_uuid)


def write(host: HostLayout, settings: Settings, image: GuestImage) -> None:
    """Write all configuration of one host."""
    layout = host.lab
    for folder in (host.log, host.etc / "libvirt", host.directory / "state"):
        folder.mkdir(parents=True, exist_ok=True)
    libvirt = host.etc / "libvirt"
    (libvirt / "qemu.conf").write_text(
        QEMU_CONF.format(lock_manager=LOCK_MANAGER_LINE, pki=certificates.FOLDER)
    )
    (libvirt / "qemu-sanlock.conf").write_text(
        QEMU_SANLOCK_CONF.format(no_disk_leases=NO_DISK_LEASES_LINE)
    )
    (libvirt / "sanlock.conf").write_text(f"our_host_name = {sanlock_name(host)}\n")
    (libvirt / "libvirtd.conf").write_text(
        LIBVIRTD_CONF.format(uuid=host.system_uuid, pki=certificates.FOLDER)
    )
    peers = [layout.host(host_id) for host_id in settings.host_ids()]
    names = ["127.0.0.1 localhost", *(f"{peer.address} {peer.name}" for peer in peers)]
    (host.etc / "hosts").write_text("\n".join(names) + "\n")
    # No name server is reachable; an empty list fails at once instead of after 5 s.
    (host.etc / "resolv.conf").write_text("")
    host.definition.write_text(vms.domain(vms.ENGINE, layout, settings, image))
    host.config.write_text(agent_config(host, settings, peers))
    host.secrets.touch(mode=0o600)
    passwords = (f'{peer.id} = "{settings.bmc_password}"\n' for peer in peers if settings.bmc)
    key = f'cluster-key = "{settings.cluster_key}"\n'
    host.secrets.write_text(key + "[fence-passwords]\n" + "".join(passwords))


def agent_config(host: HostLayout, settings: Settings, peers: Iterable[HostLayout]) -> str:
    """The daemons' own configuration file."""
    text = AGENT_CONFIG.format(
        id=host.id,
        name=host.name,
        uuid=host.system_uuid,
        lab=host.lab,
        cluster_id=f'id = "{CLUSTER_ID}"' if settings.named else "",
        registry=f'registry = "{host.lab.registry}"\n' if settings.vms > 1 else "",
        # The guests of the lab write their console to a file on the host.
        passthrough="passthrough = true\n" if settings.vms > 1 else "",
        volume_ids=VOLUME_IDS if settings.named else "",
        lockspace=LOCKSPACE,
        io_timeout_s=settings.io_timeout_s,
        vm_name=VM_NAME,
        definition=host.definition,
        gateway=GATEWAY,
        bridge=HOST_BRIDGE,
        guest_address=GUEST_ADDRESS,
        health_path=HEALTH_PATH,
        directory=host.directory,
        secrets=host.secrets,
        migration=MIGRATION_BY_SOCKET.format(lab=host.lab),
        address=host.address,
        api_port=API_PORT,
    )
    text += storage_fence(host.lab, settings)
    if settings.bmc:
        for peer in peers:
            text += FENCE_DEVICE.format(
                id=peer.id, address=peer.bmc_address, port=BMC_PORT, user=BMC_USER
            )
    return text


def storage_fence(layout: Layout, settings: Settings) -> str:
    """What takes a dead host's clients or locks off the storage."""
    if settings.storage == CEPH:
        options = json.dumps(["--conf", str(ceph.config(layout))])
        return f'\n[storage-fence]\ntype = "ceph"\noptions = {options}\n'
    if settings.storage == GLUSTER:
        options = json.dumps(gluster.command(layout)[2:])
        disks = [layout.shared_disk_of(vm.role) for vm in vms.of(settings) if vm.has_disk]
        images = json.dumps([f"/{disk.name}" for disk in disks])
        keys = f'volume = "{gluster.VOLUME}"\nimages = {images}\noptions = {options}\n'
        return f'\n[storage-fence]\ntype = "gluster"\n{keys}'
    return ""
