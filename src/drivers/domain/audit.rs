//! What the audit trail hears of guests: starts, stops, and what of the host they have, in libvirt's words.

use super::Domains;
use super::event::{Started, Stopped};
use crate::conf::devices::{
    Card, CharBackend, CharSource, ConsoleType, Devices, Disk, Hostdev, HostdevSource, Input, InputKind,
    Place, Rng, RngBackend, ScsiPlace, Shmem, Smartcard, Storage, Tpm, TpmBackend,
};
use crate::conf::domain::Domain;
use crate::qemu::job::State;
use crate::util::audit::{Audit, Outcome, Record, bare_field, field};

/// Why a guest has something, or no longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Start,
    Attach,
    Detach,
}

impl Change {
    fn reason(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Attach => "attach",
            Self::Detach => "detach",
        }
    }
}

/// What a disk has another image for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exchange {
    /// Another medium in a drive.
    Medium,
    /// An image below which the old one lies from now on.
    Snapshot,
    /// A copy that is written to beside the old one.
    Mirror,
}

/// Things that are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    MemoryKib,
    Vcpus,
    IoThreads,
}

/// Something of the host's that a guest uses.
#[derive(Debug, PartialEq, Eq)]
enum Resource {
    /// By the kind of device, and what stands for it.
    Device(&'static str, String),
    /// The same in a form of its own, which does not tell old from new.
    Fields(&'static str, String),
}

/// What libvirt takes where a card names none.
const CARD_DATABASE: &str = "/etc/pki/nssdb";

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
            audit.record(Record::Resource, Outcome::Success, head.device(Change::Start, &resource));
        }
        let amounts = [
            (Amount::MemoryKib, definition.memory.total_kib),
            (Amount::Vcpus, definition.vcpus.online().into()),
            (Amount::IoThreads, definition.iothreads.threads.len() as u64),
        ];
        for (kind, amount) in amounts.into_iter().filter(|&(kind, n)| kind != Amount::IoThreads || n > 0) {
            audit.record(Record::Resource, Outcome::Success, head.amount("start", kind, (0, amount)));
        }
        audit.record(Record::Control, outcome, head.control("start", reason, pid));
    }

    /// Whom the guest runs as.
    pub(super) fn audit_confinement(&self, definition: &Domain) {
        let Some(audit) = self.audit.get() else { return };
        let Head { virt, vm } = Head::of(definition);
        for seclabel in &definition.seclabels {
            let or_nothing = |text: &Option<Box<str>>| text.as_deref().unwrap_or("?").to_owned();
            let (label, image) = (or_nothing(&seclabel.label), or_nothing(&seclabel.imagelabel));
            let model = or_nothing(&seclabel.model);
            let (label, image) = (bare_field("vm-ctx", &label), bare_field("img-ctx", &image));
            let text = format!("virt={virt} {vm} {label} {image} model={model}");
            audit.record(Record::Identity, Outcome::Success, text);
        }
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
        audit.record(Record::Control, Outcome::Success, Head::of(definition).control("stop", reason, 0));
    }

    /// Devices that a running guest got, or gave back, or did not; `definition` is without the change.
    pub(super) fn audit_devices(
        &self,
        definition: &Domain,
        devices: &Devices,
        change: Change,
        outcome: Outcome,
    ) {
        let Some(audit) = self.audit.get() else { return };
        let head = Head::of(definition);
        for resource in resources(devices) {
            audit.record(Record::Resource, outcome, head.device(change, &resource));
        }
        let plugged: u64 = devices.memories.iter().map(|memory| memory.target.size_kib).sum();
        let old = definition.memory.total_kib;
        let new = match change {
            Change::Detach => old.saturating_sub(plugged),
            Change::Start | Change::Attach => old.saturating_add(plugged),
        };
        self.audit_amount(definition, Amount::MemoryKib, (old, new), outcome);
    }

    /// Another image of a disk.
    pub(super) fn audit_image(
        &self,
        definition: &Domain,
        exchange: Exchange,
        (old, new): (Option<&Storage>, Option<&Storage>),
        outcome: Outcome,
    ) {
        let (old, new) = (old.and_then(local), new.and_then(local));
        let (Some(audit), true) = (self.audit.get(), old.is_some() || new.is_some()) else { return };
        let reason = match exchange {
            Exchange::Medium => "update",
            Exchange::Snapshot => "snapshot",
            Exchange::Mirror => "mirror",
        };
        let text = Head::of(definition).exchange("disk", reason, old, new);
        audit.record(Record::Resource, outcome, text);
    }

    /// More of something, or less; nothing is said of what stays.
    pub(super) fn audit_amount(
        &self,
        definition: &Domain,
        kind: Amount,
        (old, new): (u64, u64),
        outcome: Outcome,
    ) {
        let (Some(audit), true) = (self.audit.get(), old != new) else { return };
        audit.record(Record::Resource, outcome, Head::of(definition).amount("update", kind, (old, new)));
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

    fn amount(&self, reason: &str, kind: Amount, (old, new): (u64, u64)) -> String {
        let Self { virt, vm } = self;
        let kind = match kind {
            Amount::MemoryKib => "mem",
            Amount::Vcpus => "vcpu",
            Amount::IoThreads => "iothread",
        };
        format!("virt={virt} resrc={kind} reason={reason} {vm} old-{kind}={old} new-{kind}={new}")
    }

    fn exchange(&self, kind: &str, reason: &str, old: Option<&str>, new: Option<&str>) -> String {
        let Self { virt, vm } = self;
        let old = field(&format!("old-{kind}"), old.unwrap_or("?"));
        let new = field(&format!("new-{kind}"), new.unwrap_or("?"));
        format!("virt={virt} resrc={kind} reason={reason} {vm} {old} {new}")
    }

    fn device(&self, change: Change, resource: &Resource) -> String {
        let Self { virt, vm } = self;
        let reason = change.reason();
        match resource {
            Resource::Device(kind, what) if change == Change::Detach => {
                self.exchange(kind, reason, Some(what), None)
            }
            Resource::Device(kind, what) => self.exchange(kind, reason, None, Some(what)),
            Resource::Fields(kind, fields) => {
                format!("virt={virt} resrc={kind} reason={reason} {vm} {fields}")
            }
        }
    }
}

/// In the order in which libvirt names them.
fn resources(devices: &Devices) -> Vec<Resource> {
    let named = |kind| move |what: &str| Resource::Device(kind, what.to_owned());
    let images = devices.disks.iter().filter_map(|disk: &Disk| local(&disk.storage));
    let shares = devices.filesystems.iter().filter_map(|it| it.source.as_ref()?.dir.as_deref());
    let macs = devices.interfaces.iter().filter_map(|it| it.mac.address);
    let redirected = devices.redirdevs.iter().map(|it| {
        let device = field("device", "USB redirdev");
        Resource::Fields("dev", format!("bus={} {device}", it.bus.as_str()))
    });
    // The first console is the first serial line once more.
    let same = |kind: &Option<ConsoleType>| matches!(kind, None | Some(ConsoleType::Serial));
    let repeated = devices.consoles.first().is_some_and(|console| same(&console.target.kind));
    let streams = (devices.serials.iter().map(|it| &it.source))
        .chain(devices.parallels.iter().map(|it| &it.source))
        .chain(devices.channels.iter().map(|it| &it.source))
        .chain(devices.consoles.iter().skip(repeated.into()).map(|it| &it.source));
    let mut all: Vec<Resource> = images.map(named("disk")).collect();
    all.extend(shares.map(named("fs")));
    all.extend(macs.map(|mac| Resource::Device("net", mac.to_string())));
    all.extend(devices.hostdevs.iter().filter_map(host_device));
    all.extend(redirected);
    all.extend(streams.filter_map(path).map(named("chardev")));
    all.extend(devices.smartcards.iter().flat_map(cards).map(|card| Resource::Device("smartcard", card)));
    all.extend(devices.rngs.iter().filter_map(entropy).map(named("rng")));
    all.extend(devices.tpms.iter().map(trusted_module));
    all.extend(devices.shmems.iter().map(shared_memory));
    all.extend(devices.inputs.iter().filter_map(input));
    all
}

/// Where an image is, if it is on this host.
fn local(storage: &Storage) -> Option<&str> {
    match &storage.place {
        Place::File(path) | Place::Block(path) | Place::Dir(path) => path.as_deref(),
        _ => None,
    }
}

fn host_device(device: &Hostdev) -> Option<Resource> {
    let (bus, address) = match &device.source {
        HostdevSource::Pci(pci) => {
            let at = &pci.address;
            ("pci", format!("{:04x}:{:02x}:{:02x}.{}", at.domain, at.bus, at.slot, at.function))
        }
        HostdevSource::Usb(usb) => ("usb", format!("{:03}.{:03}", usb.bus, usb.device)),
        HostdevSource::Scsi(scsi) => match &scsi.place {
            ScsiPlace::Host { adapter, bus, target, unit, .. } => {
                ("scsi", format!("{adapter}:{bus}:{target}:{unit}"))
            }
            ScsiPlace::Iscsi { .. } => return None,
        },
        HostdevSource::VhostScsi(scsi) => ("scsi_host", scsi.wwpn.to_string()),
        HostdevSource::Mdev(mdev) => ("mdev", mdev.uuid.to_string()),
        HostdevSource::Capabilities { .. } => return None,
    };
    Some(Resource::Fields("dev", format!("bus={bus} {}", field("device", &address))))
}

fn cards(smartcard: &Smartcard) -> Vec<String> {
    match &smartcard.card {
        Card::Host => vec!["nss-smartcard-device".to_owned()],
        Card::Certificates(certificates) => {
            let database = certificates.database.as_deref().unwrap_or(CARD_DATABASE);
            let names = certificates.names.iter().map(|name| &**name);
            names.chain([database]).map(str::to_owned).collect()
        }
        Card::Passthrough(source) => path(source).map(str::to_owned).into_iter().collect(),
    }
}

fn entropy(rng: &Rng) -> Option<&str> {
    match &rng.backend {
        RngBackend::Random(source) => source.path.as_deref(),
        RngBackend::Egd(source) => path(source),
        RngBackend::Builtin => None,
    }
}

fn trusted_module(tpm: &Tpm) -> Resource {
    let (kind, path) = match &tpm.backend {
        TpmBackend::Passthrough(host) => ("tpm", host.device.as_deref()),
        TpmBackend::Emulator(emulator) => ("tpm-emulator", emulator.socket.as_deref()),
        TpmBackend::External(external) => {
            ("tpm-external", external.source.as_ref().and_then(|source| source.path.as_deref()))
        }
    };
    Resource::Fields(kind, field("device", path.unwrap_or("?")))
}

fn shared_memory(memory: &Shmem) -> Resource {
    match &memory.server {
        Some(server) => {
            let path = server.path.as_deref().unwrap_or("?");
            Resource::Fields("ivshmem-socket", bare_field("path", path))
        }
        None => {
            let path = bare_field("path", &format!("/dev/shm/{}", memory.name));
            Resource::Fields("shmem", format!("size={} {path}", memory.size_bytes))
        }
    }
}

fn input(input: &Input) -> Option<Resource> {
    if !matches!(input.kind, InputKind::Passthrough | InputKind::Evdev) {
        return None;
    }
    let source = input.source.as_ref();
    let path = source.and_then(|source| source.evdev.as_deref().or(source.dev.as_deref()));
    Some(Resource::Fields("evdev", bare_field("path", path.unwrap_or("?"))))
}

fn path(source: &CharSource) -> Option<&str> {
    match &source.backend {
        CharBackend::Pty(path) | CharBackend::Dev(path) | CharBackend::Pipe(path) => path.as_deref(),
        CharBackend::File(file) => file.path.as_deref(),
        CharBackend::Unix(unix) => unix.path.as_deref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::xml::Form;

    /// Elements, and what is said of them.
    const WORDS: &[(&str, &[&str])] = &[
        (
            "<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='2' slot='0x1f' function='3'/>\
                 </source></hostdev>",
            &["resrc=dev bus=pci device=\"0000:02:1f.3\""],
        ),
        (
            "<hostdev mode='subsystem' type='usb'><source><address bus='1' device='12'/></source></hostdev>",
            &["resrc=dev bus=usb device=\"001.012\""],
        ),
        (
            "<hostdev mode='subsystem' type='scsi'><source><adapter name='scsi_host0'/>\
                 <address bus='1' target='2' unit='3'/></source></hostdev>",
            &["resrc=dev bus=scsi device=\"scsi_host0:1:2:3\""],
        ),
        (
            "<hostdev mode='subsystem' type='scsi_host'><source protocol='vhost' \
                 wwpn='naa.5001405bc67e4ee0'/></hostdev>",
            &["resrc=dev bus=scsi_host device=\"naa.5001405bc67e4ee0\""],
        ),
        (
            "<hostdev mode='subsystem' type='mdev' model='vfio-pci'><source>\
                 <address uuid='09090909-0909-0909-0909-090909090909'/></source></hostdev>",
            &["resrc=dev bus=mdev device=\"09090909-0909-0909-0909-090909090909\""],
        ),
        // "USB redirdev" has a space.
        ("<redirdev bus='usb' type='spicevmc'/>", &["resrc=dev bus=usb device=555342207265646972646576"]),
        ("<smartcard mode='host'/>", &["resrc=smartcard old=? new=nss-smartcard-device"]),
        (
            "<smartcard mode='host-certificates'><certificate>a</certificate><certificate>b</certificate>\
                 <certificate>c</certificate></smartcard>",
            &[
                "resrc=smartcard old=? new=a",
                "resrc=smartcard old=? new=b",
                "resrc=smartcard old=? new=c",
                "resrc=smartcard old=? new=/etc/pki/nssdb",
            ],
        ),
        (
            "<smartcard mode='passthrough' type='dev'><source path='/dev/x'/></smartcard>",
            &["resrc=smartcard old=? new=/dev/x"],
        ),
        (
            "<rng model='virtio'><backend model='egd' type='unix'><source mode='connect' path='/e'/></backend></rng>",
            &["resrc=rng old=? new=/e"],
        ),
        (
            "<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>",
            &["resrc=tpm device=\"/dev/tpm0\""],
        ),
        (
            "<shmem name='s'><model type='ivshmem-doorbell'/><server path='/run/s s'/></shmem>",
            &["resrc=ivshmem-socket path=2F72756E2F732073"],
        ),
        (
            "<input type='evdev'><source dev='/dev/input/event3'/></input>",
            &["resrc=evdev path=/dev/input/event3"],
        ),
        // What comes over the network, or from nowhere, is nothing of the host's.
        ("<input type='tablet' bus='usb'/>", &[]),
        ("<rng model='virtio'><backend model='builtin'/></rng>", &[]),
        (
            "<disk type='network' device='disk'><source protocol='nbd' name='x'><host name='h'/></source>\
                 <target dev='vda'/></disk>",
            &[],
        ),
    ];

    #[test]
    fn what_is_given_away_has_libvirts_words() {
        for &(xml, expected) in WORDS {
            let (_, devices) = Devices::read_one(xml, Form::INACTIVE).unwrap();
            let found: Vec<_> = resources(&devices)
                .iter()
                .map(|resource| match resource {
                    Resource::Device(kind, what) => format!("resrc={kind} old=? new={what}"),
                    Resource::Fields(kind, fields) => format!("resrc={kind} {fields}"),
                })
                .collect();
            assert_eq!(found, expected, "{xml}");
        }
    }
}
