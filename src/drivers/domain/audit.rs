//! What the audit trail hears of guests: starts, stops, and what of the host they have, in libvirt's words.

use super::Domains;
use super::event::{Started, Stopped};
use crate::conf::devices::{CharBackend, CharSource, Devices, HostdevSource, Place, RngBackend};
use crate::conf::domain::Domain;
use crate::qemu::job::State;
use crate::qemu::security;
use crate::util::audit::{Audit, Outcome, Record, field};

/// Why a guest has something, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Start,
    Attach,
    Detach,
}

/// Something of the host's that a guest uses.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    /// By the kind of device, and what stands for it.
    Device(&'static str, String),
    /// By bus and address.
    Host(&'static str, String),
}

impl Domains {
    /// Said once, before any guest is touched.
    pub fn set_audit(&self, audit: Audit) {
        // A second one would be a mistake of the one caller, and changes nothing.
        let _ = self.audit.set(audit);
    }

    pub(super) fn audit_start(&self, state: &State, why: Started) {
        let Some(definition) = state.definition() else { return };
        let reason = match why {
            Started::Booted => "booted",
            Started::Migrated => "migrated",
            Started::Restored => "restored",
            Started::FromSnapshot => "from-snapshot",
            Started::Wakeup => return,
        };
        self.audit_begun(definition, reason, Outcome::Success, pid(state));
    }

    /// A start that came to nothing.
    pub(super) fn audit_failed_start(&self, definition: &Domain) {
        self.audit_begun(definition, "booted", Outcome::Failure, 0);
    }

    fn audit_begun(&self, definition: &Domain, reason: &str, outcome: Outcome, pid: u32) {
        let Some(audit) = self.audit.get() else { return };
        let head = Head::of(definition);
        for resource in resources(&definition.devices) {
            audit.record(Record::Resource, Outcome::Success, &head.device(Change::Start, &resource));
        }
        let threads = definition.iothreads.threads.len() as u64;
        let amounts = [
            ("mem", definition.memory.total_kib),
            ("vcpu", definition.vcpus.online().into()),
            ("iothread", threads),
        ];
        for (kind, amount) in amounts.into_iter().filter(|&(kind, amount)| kind != "iothread" || amount > 0) {
            audit.record(Record::Resource, Outcome::Success, &head.amount(kind, amount));
        }
        audit.record(Record::Control, outcome, &head.control("start", reason, pid));
    }

    /// `state` is what the guest was; its process is gone.
    pub(super) fn audit_stop(&self, state: &State, why: Stopped) {
        let (Some(audit), Some(definition)) = (self.audit.get(), state.definition()) else { return };
        let reason = match why {
            Stopped::Shutdown => "shutdown",
            Stopped::Destroyed => "destroyed",
            Stopped::Crashed => "crashed",
            Stopped::Migrated => "migrated",
            Stopped::Saved => "saved",
            Stopped::Failed => "failed",
            Stopped::FromSnapshot => "from-snapshot",
        };
        audit.record(Record::Control, Outcome::Success, &Head::of(definition).control("stop", reason, 0));
    }

    /// Devices that a running guest got, or gave back.
    pub(super) fn audit_devices(&self, definition: &Domain, devices: &Devices, change: Change) {
        let Some(audit) = self.audit.get() else { return };
        let head = Head::of(definition);
        for resource in resources(devices) {
            audit.record(Record::Resource, Outcome::Success, &head.device(change, &resource));
        }
    }
}

fn pid(state: &State) -> u32 {
    state.process().map_or(0, |process| process.pid())
}

/// What every record of a guest has.
struct Head {
    virt: &'static str,
    vm: String,
}

impl Head {
    fn of(definition: &Domain) -> Self {
        let vm = format!("{} uuid={}", field("vm", &definition.name), definition.uuid);
        Self { virt: definition.virt_type.as_str(), vm }
    }

    fn control(&self, operation: &str, reason: &str, pid: u32) -> String {
        let Self { virt, vm } = self;
        format!("virt={virt} op={operation} reason={reason} {vm} vm-pid={pid}")
    }

    fn amount(&self, kind: &str, amount: u64) -> String {
        let Self { virt, vm } = self;
        format!("virt={virt} resrc={kind} reason=start {vm} old-{kind}=0 new-{kind}={amount}")
    }

    fn device(&self, change: Change, resource: &Resource) -> String {
        let Self { virt, vm } = self;
        let reason = match change {
            Change::Start => "start",
            Change::Attach => "attach",
            Change::Detach => "detach",
        };
        match resource {
            Resource::Device(kind, what) => {
                let (old, new) = if change == Change::Detach { (&**what, "?") } else { ("?", &**what) };
                let (old, new) = (field(&format!("old-{kind}"), old), field(&format!("new-{kind}"), new));
                format!("virt={virt} resrc={kind} reason={reason} {vm} {old} {new}")
            }
            Resource::Host(bus, address) => {
                let device = field("device", address);
                format!("virt={virt} resrc=dev reason={reason} {vm} bus={bus} {device}")
            }
        }
    }
}

/// In the order in which libvirt names them.
fn resources(devices: &Devices) -> Vec<Resource> {
    let disks = devices.disks.iter().filter_map(|disk| match &disk.storage.place {
        Place::File(Some(path)) | Place::Block(Some(path)) => {
            Some(Resource::Device("disk", path.to_string()))
        }
        _ => None,
    });
    let shares = devices.filesystems.iter().filter_map(|it| it.source.as_ref()?.dir.as_deref());
    let macs = devices.interfaces.iter().filter_map(|it| it.mac.address);
    let hostdevs = devices.hostdevs.iter().filter_map(|it| match &it.source {
        HostdevSource::Pci(pci) => {
            let at = &pci.address;
            let address = format!("{:04x}:{:02x}:{:02x}.{}", at.domain, at.bus, at.slot, at.function);
            Some(Resource::Host("pci", address))
        }
        HostdevSource::Usb(usb) => Some(Resource::Host("usb", format!("{:03}.{:03}", usb.bus, usb.device))),
        HostdevSource::Mdev(mdev) => Some(Resource::Host("mdev", mdev.uuid.to_string())),
        HostdevSource::Scsi(_) | HostdevSource::VhostScsi(_) | HostdevSource::Capabilities { .. } => None,
    });
    let streams = security::streams(devices).filter_map(path);
    let rngs = devices.rngs.iter().filter_map(|it| match &it.backend {
        RngBackend::Random(source) => source.path.as_deref(),
        RngBackend::Egd(source) => path(source),
        RngBackend::Builtin => None,
    });
    disks
        .chain(shares.map(|dir| Resource::Device("fs", dir.to_owned())))
        .chain(macs.map(|mac| Resource::Device("net", mac.to_string())))
        .chain(hostdevs)
        .chain(streams.map(|path| Resource::Device("chardev", path.to_owned())))
        .chain(rngs.map(|path| Resource::Device("rng", path.to_owned())))
        .collect()
}

fn path(source: &CharSource) -> Option<&str> {
    match &source.backend {
        CharBackend::Pty(path) | CharBackend::Dev(path) | CharBackend::Pipe(path) => path.as_deref(),
        CharBackend::File(file) => file.path.as_deref(),
        CharBackend::Unix(unix) => unix.path.as_deref(),
        _ => None,
    }
}
