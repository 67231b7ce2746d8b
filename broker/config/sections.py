# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration file: `/etc/ha-agent/ha-agent.toml`, the same for both daemons.

Every key, its type, its default and its range stand here, those of `[notify]` in notify_section.py,
and nowhere else; values.py has the types. load.py reads the file; relations.py has the rules that
concern more than one key. What does not fit is a ConfigError that
names the file and the key and says what would fit; an unknown key is an error with the nearest
known one.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from broker.config import addresses
from broker.config.fence_relations import PORTS, TYPES
from broker.config.notify_section import NotifySection
from broker.config.places import DEFAULT_SOCKET
from broker.config.sealed import SealedSection
from broker.config.storage_fence import StorageFenceSection
from broker.config.values import (
    AbsolutePath,
    Fraction,
    HostId,
    Interval,
    Name,
    Points,
    Port,
    Seconds,
    SecondsOrNever,
    Section,
    VolumeId,
)
from scoring.rules import Rules, Weights
from scoring.timing import Timing

#: The page on which an oVirt engine reports its health.
OVIRT_PAGE = "http://{}/ovirt-engine/services/health"
#: The text on that page when the engine is well.
OVIRT_EXPECT = "DB Up"
#: The port on which heartbeats are answered, unless another one is configured.
HEARTBEAT_PORT = 8766

#: QEMU as the distributions install it.
EMULATORS = (
    *(f"/usr/bin/qemu-system-{kind}" for kind in ("x86_64", "aarch64", "ppc64", "s390x")),
    *("/usr/bin/qemu-kvm", "/usr/bin/kvm", "/usr/libexec/qemu-kvm"),
)


class ClusterSection(Section, frozen=True, kw_only=True):
    """`id`: made by `ha-agent init`, the same on all hosts; empty: it is not checked."""

    name: Name = "ha"
    id: VolumeId = ""


class HostSection(Section, frozen=True, kw_only=True):
    """`id`: in lockspace and whiteboard. `system-uuid`: default the SMBIOS UUID; a peer's fence
    device must show the same. `memory-reserve`: MiB that no VM of the registry gets."""

    id: HostId
    name: str = ""
    system_uuid: Annotated[str, Meta(pattern=r"^$|^[0-9A-Fa-f-]{32,36}$")] = ""
    memory_reserve: Annotated[int, Meta(ge=0, le=2**26)] = 1024


class StorageSection(Section, frozen=True, kw_only=True):
    """Files on shared storage, or block devices. `registry`: of the VMs beside the engine; empty:
    there are none. `io-timeout`: sanlock's in seconds, the same on all hosts. `whiteboard-id`,
    `leases-id`: the ids that the volumes must have. `unsigned`: what becomes of a slot that is not
    signed with the cluster key: `ignore` it, `show` it (it counts only where it is of a member that
    an earlier version runs on), or `trust` it. `sanlock-conf`: sanlock's own file, where its fixed
    name stands."""

    whiteboard: AbsolutePath
    leases: AbsolutePath
    registry: Annotated[str, Meta(pattern="^$|^/", max_length=4096)] = ""
    whiteboard_id: VolumeId = ""
    leases_id: VolumeId = ""
    unsigned: Annotated[str, Meta(pattern="^(ignore|show|trust)$")] = "show"
    lockspace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,48}$")] = "hosted-engine"
    resource: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,48}$")] = "engine"
    io_timeout: Annotated[int, Meta(ge=1, le=60)] = 10
    sanlock_conf: AbsolutePath = "/etc/sanlock/sanlock.conf"


class VmSection(Section, frozen=True, kw_only=True):
    """`definition`: the libvirt domain XML, with its `<lease>`. `shared-definition`: the copy
    on shared storage that this host's must not be older than. `prove-start`: a host that could
    certainly not start the VM scores 0. `on-host-shutdown`: what becomes of the VM when its host
    shuts down or reboots: `migrate` (its guest is shut down where no host can take it), `shutdown`,
    or `leave` (to libvirt). `on-isolation`: what becomes of a VM that nobody reaches because its
    host is cut off: `move` it, or `leave` it and notify. `admission`: what `vm add` does where a VM
    would have no place then, now or after a host's death: `warn`, or `refuse`. `balance`: a VM of
    the registry leaves the fullest host where that makes the hosts' memory clearly more even."""

    name: Name = "HostedEngine"
    definition: AbsolutePath = "/etc/ha-agent/engine.xml"
    shared_definition: AbsolutePath | None = None
    prove_start: bool = True
    on_host_shutdown: Annotated[str, Meta(pattern="^(migrate|shutdown|leave)$")] = "migrate"
    on_isolation: Annotated[str, Meta(pattern="^(move|leave)$")] = "move"
    admission: Annotated[str, Meta(pattern="^(warn|refuse)$")] = "warn"
    balance: bool = False


class LibvirtSection(Section, frozen=True, kw_only=True):
    """`migration-uri`, `migration-data-uri`: templates, `{host}` is the target's host name.

    `migration-bandwidth`: MiB/s, 0: as much as there is. `migration-downtime`: ms that the VM
    may stand still at the end, 0: libvirt's default. `migration-timeout`: s until a migration
    that does not end is cancelled. `migration-post-copy-after`: s until the VM goes on at the
    target whatever is still missing, 0: never. `migration-tls`: QEMU encrypts the guest's memory
    on its way. `pki-dir`: where libvirt and QEMU look for certificates. `emulators`,
    `passthrough`: what a definition from the registry may name here (broker/vm/admitted.py).
    """

    uri: Name = "qemu:///system"
    qemu_conf: AbsolutePath = "/etc/libvirt/qemu.conf"
    pid_dir: AbsolutePath = "/run/libvirt/qemu"
    migration_uri: str = ""
    migration_data_uri: str = ""
    migration_bandwidth: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    migration_downtime: Annotated[int, Meta(ge=0, le=60_000)] = 0
    migration_timeout: Seconds = 300.0
    migration_auto_converge: bool = True
    migration_post_copy_after: Annotated[float, Meta(ge=0, le=86400)] = 0.0
    migration_tls: bool = False
    pki_dir: AbsolutePath = "/etc/pki"
    emulators: tuple[AbsolutePath, ...] = EMULATORS
    passthrough: bool = False


class NetworkSection(Section, frozen=True, kw_only=True):
    """`test`: `ping`, `dns`, `tcp` or `none`. `targets`: addresses to ping, the gateway as a
    rule; resolvers to ask; `host:port` to connect to.

    `dns-server`: asked instead of the system's resolver. `dns-name`: what is asked for; empty:
    the root. `bridge`: the management bridge; empty: not checked.
    """

    test: Annotated[str, Meta(pattern="^(ping|dns|tcp|none)$")] = "ping"
    targets: tuple[Name, ...] = ()
    dns_server: str = ""
    dns_port: Port = 53
    dns_name: str = ""
    bridge: str = "ovirtmgmt"


class MonitorsSection(Section, frozen=True, kw_only=True):
    """How often each monitor samples, in seconds. A sample of the VM is forgotten after 15 s."""

    engine: Annotated[float, Meta(ge=0.5, le=5)] = 1.0
    health: Interval = 1.0
    network: Interval = 10.0
    bridge: Interval = 2.0
    memory: Interval = 5.0
    cpu_load: Interval = 10.0
    pressure: Interval = 10.0
    definition: Interval = 30.0
    lock_driver: Interval = 5.0
    what_runs: Annotated[float, Meta(ge=0.5, le=60)] = 1.0
    can_start: Interval = 60.0


class HealthSection(Section, frozen=True, kw_only=True):
    """How the engine is asked: `url` (its page, in which the regular expression `expect` must be
    found), or `fqdn` (the name of an oVirt engine, which has its page at a known place), or
    `tcp`, or `guest-agent`. `failures` in a row before it is bad."""

    url: str = ""
    fqdn: str = ""
    expect: str | None = None
    ca_file: AbsolutePath | None = None
    verify: bool = True
    tcp: str = ""
    guest_agent: bool = False
    timeout: Seconds = 5.0
    failures: Annotated[int, Meta(ge=1, le=100)] = 2

    @property
    def page(self) -> str:
        """The page to ask; empty: none."""
        return self.url or (OVIRT_PAGE.format(self.fqdn) if self.fqdn else "")

    @property
    def expected(self) -> str:
        """The regular expression to be found in the page; empty: any page with status 200 is good.
        For oVirt's own page the expression is known."""
        if self.expect is not None:
            return self.expect
        return OVIRT_EXPECT if self.page.endswith(OVIRT_PAGE.partition("{}")[2]) else ""


class FenceDevice(Section, frozen=True, kw_only=True):
    """One way to read and switch the power of host `host`; docs/fencing.md has all about it."""

    host: HostId
    name: Annotated[str, Meta(pattern=r"^$|^[A-Za-z0-9_-]{1,32}$")] = ""
    type: Annotated[str, Meta(pattern=f"^({'|'.join(TYPES)})$")] = "ipmi"
    level: Annotated[int, Meta(ge=1, le=9)] = 1
    identity: Annotated[str, Meta(pattern="^(proven|trusted)$")] = "proven"
    address: Annotated[str, Meta(max_length=255)] = ""
    port: Port | None = None
    username: str = ""
    timeout: Seconds | None = None
    retries: Annotated[int, Meta(ge=0, le=5)] = 1
    privilege: Annotated[str, Meta(pattern="^(user|operator|administrator)$")] = "operator"
    system: Annotated[str, Meta(max_length=255)] = ""
    ca_file: AbsolutePath | None = None
    fingerprint: Annotated[str, Meta(pattern="^$|^([0-9A-Fa-f]{2}:?){32}$")] = ""
    verify: bool = True
    agent: Annotated[str, Meta(pattern="^$|^(/.*/)?fence_[A-Za-z0-9_]+$")] = ""
    options: dict[str, bool | int | str] = msgspec.field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key of its secrets in the secrets file."""
        return f"{self.host}/{self.name}" if self.name else f"{self.host}"

    @property
    def port_used(self) -> int | None:
        """The port, where the type has one."""
        return self.port or PORTS.get(self.type)

    @property
    def title(self) -> str:
        """The name of the device in every text for people."""
        words = [f"{self.type} {self.name}" if self.name else self.type]
        words += [Path(self.agent).name] if self.agent else []
        port = f" port {self.port_used}" if self.port_used else ""
        words += [self.address + port] if self.address else []
        return f"{' '.join(words)} of host {self.host}"


class FenceSection(Section, frozen=True, kw_only=True):
    """`timeout`: for one exchange. `power-off`: a silent host is switched off, `power-on`: and on;
    `per-hour`: how often. `rehearse-every`: a test. `expected`: false: knowingly no device."""

    device: tuple[FenceDevice, ...] = ()
    expected: bool = True
    timeout: Seconds = 8.0
    power_off: bool = True
    power_on: bool = True
    per_hour: Annotated[int, Meta(ge=1, le=100)] = 3
    rehearse_every: Annotated[float, Meta(ge=10, le=86400)] = 3600.0


class DaemonSection(Section, frozen=True, kw_only=True):
    """Paths and settings of the daemons on this host."""

    socket: AbsolutePath = DEFAULT_SOCKET
    state_dir: AbsolutePath = "/var/lib/ha-agent"
    secrets: AbsolutePath = "/etc/ha-agent/secrets.toml"
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"


class ApiSection(Section, frozen=True, kw_only=True):
    """`listen`: where this host answers over TCP, `host:port` or `[v6]:port`, and 127.0.0.1.
    `advertise`: where the others reach that; default: derived from `listen`. `heartbeat_listen`:
    where this host answers the others' heartbeats (UDP); default: the addresses of `listen` that
    are not loopback, at HEARTBEAT_PORT. `heartbeat_advertise`: where the others reach that.
    `tls_listen`: where it answers over TLS, with `certificate` and `private_key` (PEM). `names`: by
    which a browser may reach this host, besides its own and those it advertises.
    """

    listen: tuple[Name, ...] = (f"127.0.0.1:{addresses.API_PORT}",)
    advertise: tuple[Name, ...] | None = None
    heartbeat_listen: tuple[Name, ...] | None = None
    heartbeat_advertise: tuple[Name, ...] | None = None
    tls_listen: tuple[Name, ...] = ()
    certificate: AbsolutePath | None = None
    private_key: AbsolutePath | None = None
    names: tuple[Name, ...] = ()


class ScoreSection(Section, frozen=True, kw_only=True):
    """Weights under the reference's key names; see scoring/rules.py."""

    base_score: Points = 3400
    network_score_penalty: Points = 1600
    not_uptodate_config_penalty: Points = 1000
    mgmt_bridge_score_penalty: Points = 600
    free_memory_score_penalty: Points = 400
    cpu_load_score_penalty: Points = 1000
    engine_retry_score_penalty: Points = 50
    fence_path_score_penalty: Points = 0
    cpu_load_penalty_min: Fraction = 0.4
    cpu_load_penalty_max: Fraction = 0.9


class TimingSection(Section, frozen=True, kw_only=True):
    """Seconds; what is not set keeps the default of scoring/timing.py."""

    beat: Seconds | UnsetType = UNSET
    suspect_after: Seconds | UnsetType = UNSET
    fence_after: Seconds | UnsetType = UNSET
    tie_follow: Seconds | UnsetType = UNSET
    takeover_follow: Seconds | UnsetType = UNSET
    power_reread: Seconds | UnsetType = UNSET
    power_off_patience: Seconds | UnsetType = UNSET
    power_on_retry: Seconds | UnsetType = UNSET
    fence_backoff: Seconds | UnsetType = UNSET
    takeover_retry: Seconds | UnsetType = UNSET
    migrate_retry: Seconds | UnsetType = UNSET
    move_dwell: Seconds | UnsetType = UNSET
    engine_starting: Seconds | UnsetType = UNSET
    bad_health: Seconds | UnsetType = UNSET
    stop_grace: Seconds | UnsetType = UNSET
    host_shutdown_move: Seconds | UnsetType = UNSET
    host_shutdown_grace: Seconds | UnsetType = UNSET
    maybe_away: Seconds | UnsetType = UNSET
    unexpected_down: Seconds | UnsetType = UNSET
    retry_expiry: Seconds | UnsetType = UNSET
    load_window: Seconds | UnsetType = UNSET
    outside_interval: Seconds | UnsetType = UNSET
    isolation_after: Seconds | UnsetType = UNSET
    isolation_grace: Seconds | UnsetType = UNSET
    force_stop_patience: SecondsOrNever | UnsetType = UNSET
    agent_dead_after: SecondsOrNever | UnsetType = UNSET
    storage_patience: SecondsOrNever | UnsetType = UNSET


class Config(Section, frozen=True, kw_only=True):
    """The whole file."""

    host: HostSection
    storage: StorageSection
    cluster: ClusterSection = ClusterSection()
    vm: VmSection = VmSection()
    libvirt: LibvirtSection = LibvirtSection()
    network: NetworkSection = NetworkSection()
    health: HealthSection = HealthSection()
    monitors: MonitorsSection = MonitorsSection()
    fence: FenceSection = FenceSection()
    storage_fence: StorageFenceSection = StorageFenceSection()
    api: ApiSection = ApiSection()
    notify: NotifySection = NotifySection()
    daemon: DaemonSection = DaemonSection()
    score: ScoreSection = ScoreSection()
    timing: TimingSection = TimingSection()
    sealed: SealedSection = SealedSection()

    @property
    def host_name(self) -> str:
        """This host's name: configured, or the system's."""
        return self.host.name or platform.node()

    def advertised(self) -> tuple[str, ...]:
        """Where other hosts reach this one's API."""
        if self.api.advertise is not None:
            return self.api.advertise
        return addresses.to_advertise(self.api.listen, self.host_name)

    def heartbeat_listen(self) -> tuple[str, ...]:
        """The addresses at which this host answers the others' heartbeats."""
        if self.api.heartbeat_listen is not None:
            return self.api.heartbeat_listen
        return addresses.at_port(self.api.listen, HEARTBEAT_PORT)

    def heartbeat_advertised(self) -> tuple[str, ...]:
        """The addresses at which other hosts send their heartbeats."""
        if self.api.heartbeat_advertise is not None:
            return self.api.heartbeat_advertise
        if self.api.heartbeat_listen is None and self.api.advertise is not None:
            return addresses.at_port(self.api.advertise, HEARTBEAT_PORT)
        return addresses.to_advertise(self.heartbeat_listen(), self.host_name)

    def timing_rules(self) -> Timing:
        """The configured durations; ValueError where a relation between them does not hold."""
        given = msgspec.structs.asdict(self.timing)
        return Timing(**{name: value for name, value in given.items() if value is not UNSET})

    def rules(self, vm_memory_mb: float) -> Rules:
        """All settings of the decision core."""
        return Rules(
            weights=Weights(**msgspec.structs.asdict(self.score)),
            timing=self.timing_rules(),
            vm_memory_mb=vm_memory_mb,
            io_timeout_s=float(self.storage.io_timeout),
            fence_power_off=self.fence.power_off,
            fence_power_on=self.fence.power_on,
            fences_per_hour=self.fence.per_hour,
            migration_timeout_s=self.libvirt.migration_timeout,
            leave_isolated=self.vm.on_isolation == "leave",
            balance=self.vm.balance,
        )
