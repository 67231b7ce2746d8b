# SPDX-License-Identifier: LGPL-2.1-or-later
"""The options of the set-up commands: they are also the keys of an answers file."""

from __future__ import annotations

#: Option -> its help; each command takes those that it needs.
OPTIONS = {
    "storage": "folder on the shared storage for whiteboard and lease volume",
    "whiteboard": "file or block device of the whiteboard; default: STORAGE/whiteboard",
    "leases": "file or block device of the lease volume; default: STORAGE/leases",
    "registry": "file or block device of the registry, with --vms; default: STORAGE/registry",
    "vms": "how many VMs the cluster may have, 1 to 128, the engine among them; default: 1",
    "io-timeout": "sanlock's, in seconds, the same on all hosts; default: 10",
    "domain": "the VM: a domain XML file, or the name of a libvirt domain",
    "cluster": "the cluster's name; default: ha",
    "host-id": "this host's id, 1..2000",
    "name": "this host's name; default: the system's",
    "listen": "where the other hosts ask this one, ADDRESS:PORT",
    "bridge": "the management bridge, - for none; default: the VM's",
    "network-targets": "addresses to ping, with commas; default: the gateway",
    "health-url": "the page that says whether the VM is well, - for none",
    "health-expect": "what must be found in that page; default: nothing (oVirt's own: DB Up)",
    "migration-uri": "libvirt of another host, {host} is its name; - for none",
    "migration-data-uri": "where a migration's data goes; default: libvirt chooses",
    "tls": "certificates: own (made here), site (there already), ssh (none); default: own",
}
