# SPDX-License-Identifier: LGPL-2.1-or-later
"""`ha-agent import-ovirt` on files as oVirt writes them: keys, devices, an OVF envelope, a tar,
and the domain XML that VDSM used."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.ovirt.key_values import device
from agent.ovirt.storage_domain import StorageDomain
from agent.setup.answers import read_answers
from broker.daemon.exit_codes import ExitCode
from tests.unit import commands

VM, SD, IMAGE, VOLUME = (f"{n}0000000-0000-4000-8000-00000000000{n}" for n in (1, 2, 3, 4))
CONF = f"""fqdn=engine.example.org
vm_disk_id={IMAGE}
vmid={VM}
storage=nas:/export/he_data
mnt_options=
conf={{vm_conf}}
host_id=2
domainType={{kind}}
sdUUID={SD}
ca_subject="C=EN, O=Test, CN=Test"
gateway=10.0.0.1
bridge=ovirtmgmt
network_test=tcp
tcp_t_address=10.0.0.7
tcp_t_port=443
"""
VM_CONF = f"""vmId={VM}
memSize=4096
display=vnc
devices={{index:2,iface:ide,address:{{ controller:0, target:0,unit:0, bus:1, type:drive}},specParams:{{}},readonly:true,path:,device:cdrom,type:disk}}
devices={{index:0,iface:virtio,format:raw,volumeID:{VOLUME},imageID:{IMAGE},specParams:{{}},domainID:{SD},address:{{bus:0x00, slot:0x06, domain:0x0000, type:pci, function:0x0}},device:disk,shared:exclusive,type:disk,bootOrder:1}}
devices={{nicModel:pv,macAddr:00:16:3e:11:22:33,linkActive:true,network:ovirtmgmt,specParams:{{}},device:bridge,type:interface}}
vmName=HostedEngine
smp=2
cpuType=model_Haswell-noTSX
emulatedMachine=pc-q35-rhel8.4.0
"""  # noqa: E501
ENVELOPE = f"""<?xml version="1.0" encoding="UTF-8"?>
<ovf:Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" ovf:version="4.4.0.0"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<Section xsi:type="ovf:DiskSection_Type"><Disk ovf:diskId="{VOLUME}" ovf:size="50"
 ovf:fileRef="{IMAGE}/{VOLUME}" ovf:volume-format="COW" ovf:disk-interface="VirtIO_SCSI"/></Section>
<Content ovf:id="out" xsi:type="ovf:VirtualSystem_Type"><Name>HostedEngine</Name>
<BiosType>3</BiosType><CustomCpuName>Skylake-Server,+md-clear</CustomCpuName>
<Section ovf:id="{VM}" xsi:type="ovf:OperatingSystemSection_Type"/>
<Section xsi:type="ovf:VirtualHardwareSection_Type">
<Item><rasd:ResourceType>3</rasd:ResourceType><rasd:num_of_sockets>2</rasd:num_of_sockets>
<rasd:cpu_per_socket>4</rasd:cpu_per_socket><rasd:threads_per_cpu>1</rasd:threads_per_cpu></Item>
<Item><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>16384</rasd:VirtualQuantity></Item>
<Item><rasd:ResourceType>17</rasd:ResourceType><rasd:HostResource>{IMAGE}/{VOLUME}</rasd:HostResource>
<rasd:StorageId>{SD}</rasd:StorageId><Type>disk</Type></Item>
<Item><rasd:ResourceType>10</rasd:ResourceType><rasd:ResourceSubType>3</rasd:ResourceSubType>
<rasd:Connection>ovirtmgmt</rasd:Connection><rasd:MACAddress>00:16:3e:44:55:66</rasd:MACAddress></Item>
</Section></Content></ovf:Envelope>"""
VDSM_XML = f"""<domain type='kvm' id='3'><name>HostedEngine</name><uuid>{VM}</uuid>
<memory unit='KiB'>4194304</memory>
<os><type arch='x86_64' machine='pc-q35-rhel8.4.0'>hvm</type></os>
<devices>
<lease><lockspace>{SD}</lockspace><key>{VOLUME}</key>
<target path='/rhev/x/leases' offset='5'/></lease>
<disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='/var/run/vdsm/storage/{SD}/{IMAGE}/{VOLUME}'/><target dev='vda' bus='virtio'/></disk>
<interface type='bridge'><mac address='00:16:3e:11:22:33'/><source bridge='ovirtmgmt'/>
<filterref filter='vdsm-no-mac-spoofing'/></interface>
<channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channels/{VM}.x'/>
<target type='virtio' name='org.qemu.guest_agent.0'/></channel>
<graphics type='vnc' port='-1' autoport='yes' passwd='secret' passwdValidTo='1970-01-01T00:00:01'>
<listen type='network' network='vdsm-ovirtmgmt'/></graphics>
</devices></domain>"""


class Host:
    """A host with oVirt's files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "hosted-engine.conf"
        self.vm_conf = folder / "vm.conf"
        self.vm_conf.write_text(VM_CONF)
        self.write_conf("nfs")

    def write_conf(self, kind: str) -> None:
        self.conf.write_text(CONF.format(vm_conf=self.vm_conf, kind=kind))

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = commands.run("ha-agent", "import-ovirt", "--conf", self.conf, *words)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def proposal(self, *words: str | Path) -> dict[str, Any]:
        done = self.run("--json", *words)
        assert done.returncode == ExitCode.OK, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def disk_of(xml: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Path, driver and target of the one disk."""
    (disk,) = ElementTree.fromstring(xml).findall("devices/disk")
    source, driver, target = (disk.find(name) for name in ("source", "driver", "target"))
    assert source is not None and driver is not None and target is not None
    return source.get("file") or source.get("dev") or "", driver.attrib, target.attrib


WHERE = f"/rhev/data-center/mnt/nas:_export_he__data/{SD}/images/{IMAGE}/{VOLUME}"


def test_of_a_vm_conf_and_what_init_is_told(host: Host) -> None:
    found = host.proposal()
    assert found["answers"] == {
        "host-id": 2,
        "cluster": "engine.example.org",
        "health-url": "http://engine.example.org/ovirt-engine/services/health",
        "network-targets": ["10.0.0.1"],
        "bridge": "ovirtmgmt",
    }
    path, driver, target = disk_of(found["definition"])
    assert (path, driver["type"], target["bus"]) == (WHERE, "raw", "virtio")
    root = ElementTree.fromstring(found["definition"])
    assert (root.findtext("uuid"), root.findtext("memory")) == (VM, "4096")
    assert (root.findtext("vcpu"), root.findtext("cpu/model")) == ("2", "Haswell-noTSX")
    assert root.find("devices/interface/mac[@address='00:16:3e:11:22:33']") is not None
    assert '[network]\ntest = "tcp"\ntargets = ["10.0.0.7:443"]' in found["more"]
    assert any("pc-q35-rhel8.4.0 is known to EL's QEMU alone" in note for note in found["notes"])
    assert any(f"mount nas:/export/he_data at {WHERE[:42]}" in note for note in found["notes"])


def test_of_an_ovf_store(host: Host) -> None:
    store = host.folder / "store.tar"
    with tarfile.open(store, "w") as tar:
        for name, text in (("info.json", "{}"), (f"{SD}.ovf", "x"), (f"{VM}.ovf", ENVELOPE)):
            item = tarfile.TarInfo(name)
            item.size = len(text.encode())
            tar.addfile(item, io.BytesIO(text.encode()))
    with store.open("ab") as file:  # the volume is larger than the tar
        file.write(bytes(1 << 20))
    xml = host.proposal("--ovf", store, "--mount", "/ovirt")["definition"]
    path, driver, target = disk_of(xml)
    assert path == f"/ovirt/{SD}/images/{IMAGE}/{VOLUME}"
    assert (driver["type"], target) == ("qcow2", {"dev": "sda", "bus": "scsi"})
    root = ElementTree.fromstring(xml)
    assert (root.findtext("vcpu"), root.findtext("memory")) == ("8", "16384")
    assert root.findtext("cpu/model") == "Skylake-Server"
    system = root.find("os")
    assert system is not None and system.get("firmware") == "efi"

    host.conf.write_text(host.conf.read_text().replace(f"vmid={VM}", "vmid=other"))
    done = host.run("--ovf", store)
    assert done.returncode == ExitCode.FILE
    assert f"holds no OVF of VM other; of others: {SD}, {VM}; set vmid" in done.stderr


@pytest.mark.parametrize("encoded", [False, True])
def test_of_the_domain_xml_that_vdsm_used(host: Host, encoded: bool) -> None:
    words: tuple[str | Path, ...] = ()
    if encoded:
        text = base64.b64encode(VDSM_XML.encode()).decode()
        host.vm_conf.write_text(f"vmId={VM}\nxmlBase64={text}\n")
    else:
        (host.folder / "domain.xml").write_text(VDSM_XML)
        words = ("--ovf", host.folder / "domain.xml")
    found = host.proposal(*words)
    assert disk_of(found["definition"])[0] == WHERE
    for gone in ("vdsm", "secret", "passwdValidTo", "channels/"):
        assert gone not in found["definition"], gone
    assert "127.0.0.1" in found["definition"]


def test_of_block_storage(host: Host) -> None:
    host.write_conf("iscsi")
    path, driver, _ = disk_of(host.proposal()["definition"])
    assert (path, driver["io"]) == (f"/dev/{SD}/{VOLUME}", "native")


def test_what_it_writes_is_what_init_reads_and_never_over_something(host: Host) -> None:
    folder = host.folder / "out"
    done = host.run("--output", folder)
    assert done.returncode == ExitCode.OK, done.stderr
    answers = read_answers(str(folder / "answers.toml"))
    assert answers.domain == str(folder / "engine.xml")
    assert tomllib.loads((folder / "answers.toml").read_text())["host-id"] == 2
    assert (folder / "engine.xml").stat().st_mode & 0o077 == 0
    again = host.run("--output", folder)
    assert again.returncode == ExitCode.REFUSED
    assert "engine.xml: is there already; name another folder" in again.stderr


@pytest.mark.skipif(
    shutil.which("virt-xml-validate") is None or shutil.which("xmllint") is None,
    reason="virt-xml-validate needs libvirt-clients and libxml2-utils",
)
@pytest.mark.parametrize("source", ["vm.conf", "ovf", "vdsm"])
def test_libvirt_s_own_schema_takes_what_is_proposed(host: Host, source: str) -> None:
    words: tuple[str | Path, ...] = ()
    if source != "vm.conf":
        (host.folder / "x").write_text(ENVELOPE if source == "ovf" else VDSM_XML)
        words = ("--ovf", host.folder / "x")
    host.run("--output", host.folder / "out", *words)
    done = subprocess.run(
        ["virt-xml-validate", host.folder / "out" / "engine.xml", "domain"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("hosted-engine.conf", None, "hosted-engine.conf: cannot be read"),
        ("vm.conf", None, "vm.conf: cannot be read: No such file or directory; name it by"),
        ("vm.conf", "memSize=1\n", "vmId or memSize is missing"),
        ("vm.conf", "xmlBase64=!\n", "xmlBase64 is not base64"),
        ("vm.conf", f"xmlBase64={base64.b64encode(b'<a/>').decode()}\n", "holds <a>, neither"),
        ("vm.conf", f"xmlBase64={base64.b64encode(b'<a').decode()}\n", "unclosed token"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    host: Host, name: str, text: str | None, said: str
) -> None:
    path = host.folder / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    done = host.run()
    assert done.returncode == ExitCode.FILE
    assert said in done.stderr and str(path) in done.stderr


@given(st.text("{}:,= ab0x", max_size=60))
@example("{{:,}")
def test_any_device_line_is_survived(text: str) -> None:
    for key, value in device(text).items():
        assert ("," not in value and key == key.strip()) or "{" in value or "}" in value


@pytest.mark.parametrize(
    "path",
    [
        f"/run/vdsm/storage/{SD}/{IMAGE}/{VOLUME}",
        f"/rhev/data-center/mnt/other:_x/{SD}/images/{IMAGE}/{VOLUME}",
        f"/rhev/data-center/{VM}/{SD}/images/{IMAGE}/{VOLUME}",
        f"/rhev/data-center/mnt/blockSD/{SD}/images/{IMAGE}/{VOLUME}",
    ],
)
def test_every_path_of_vdsm_s_is_known(path: str) -> None:
    domain = StorageDomain("nfs", SD, "nas:/export", "/ovirt/")
    assert domain.without_vdsm(path) == f"/ovirt/{SD}/images/{IMAGE}/{VOLUME}"
    assert domain.without_vdsm("/srv/disk.img") == "/srv/disk.img"
