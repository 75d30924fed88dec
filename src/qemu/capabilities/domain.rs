//! What one QEMU offers a guest of one type: QEMU's capabilities in the words of domain XML.

use super::{Accel, Cap, Features, QemuCaps};
use crate::conf::capabilities::cpu::CpuMap;
use crate::conf::capabilities::domain::{
    CpuModes, CustomModel, DomainCapabilities, HostModel, List, Migratable, Os, Section,
};
use crate::util::arch::Arch;

/// What the document is about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub arch: Arch,
    pub accel: Accel,
    /// The canonical name.
    pub machine: Option<&'a str>,
}

/// What the host adds to QEMU's own facts.
#[derive(Debug, Clone, Copy)]
pub struct HostFacts<'a> {
    /// KVM's limit, where KVM is used.
    pub max_vcpus: Option<u32>,
    pub phys_bits: Option<u32>,
    /// Whether PCI devices can be handed to guests.
    pub vfio: bool,
    /// The versions that the host's TPM emulator has, if there is one.
    pub swtpm: Option<&'a [&'static str]>,
    pub cpu_map: Option<&'a CpuMap>,
}

/// `virConnectGetDomainCapabilities`
pub fn domain_capabilities(caps: &QemuCaps, subject: Subject<'_>, host: HostFacts<'_>) -> DomainCapabilities {
    let machine = subject.machine.unwrap_or_default();
    let max_vcpus = caps.max_vcpus(subject.accel, machine).unwrap_or(0);
    DomainCapabilities {
        emulator: caps.binary.to_string_lossy().into_owned(),
        virt_type: match subject.accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "qemu",
        },
        machine: subject.machine.map(str::to_owned),
        arch: subject.arch,
        max_vcpus: host.max_vcpus.map_or(max_vcpus, |limit| limit.min(max_vcpus)),
        os: Os::default(),
        cpu: cpu(caps, subject, host),
        memory_backing: Section::new(
            "memoryBacking",
            vec![List::of(
                "sourceType",
                &[(true, "file"), (true, "anonymous"), (caps.supports(Cap::ObjectMemoryMemfd), "memfd")],
            )],
        ),
        devices: devices(caps, machine, host),
        features: features(caps, machine),
    }
}

fn cpu(caps: &QemuCaps, subject: Subject<'_>, host: HostFacts<'_>) -> CpuModes {
    let kvm = subject.accel == Accel::Kvm;
    let passthrough = if caps.supports(Cap::CpuMigratable) { Migratable::OnOrOff } else { Migratable::Off };
    let host_model = host.cpu_map.and_then(|map| caps.host_model(subject.accel, Features::All, map));
    CpuModes {
        host_passthrough: kvm.then_some(passthrough),
        maximum: caps.supports(Cap::CpuMax).then_some(Migratable::OnOrOff),
        host_model: host_model
            .map(|cpu| HostModel { cpu: cpu.clone(), phys_bits: host.phys_bits.filter(|_| kvm) }),
        models: custom_models(caps, subject.accel, host.cpu_map),
    }
}

/// QEMU's models that libvirt has a name for; all of them where libvirt's description is not installed.
fn custom_models(caps: &QemuCaps, accel: Accel, map: Option<&CpuMap>) -> Vec<CustomModel> {
    let definitions = caps.accel(accel).map(|accel| accel.cpus.as_slice()).unwrap_or_default();
    let map = map.filter(|_| caps.arch.is_x86());
    let model = |cpu: &super::CpuDefinition| {
        let described = map.map(|map| map.model(&cpu.name));
        if cpu.name == "host" || matches!(described, Some(None)) {
            return None;
        }
        let described = described.flatten();
        Some(CustomModel {
            name: cpu.name.clone(),
            usable: cpu.blockers.as_ref().map(Vec::is_empty),
            deprecated: cpu.deprecated,
            vendor: described.and_then(|model| model.vendor.clone()),
            canonical: described.and_then(|model| model.canonical.clone()),
            blockers: cpu.blockers(caps.arch),
        })
    };
    let mut models: Vec<CustomModel> = definitions.iter().filter_map(model).collect();
    models.sort_by(|one, other| one.name.cmp(&other.name));
    models
}

fn devices(caps: &QemuCaps, machine: &str, host: HostFacts<'_>) -> Vec<Section> {
    let has = |cap| caps.supports(cap);
    let spice = has(Cap::Spice);
    let filesystems = [(true, "path"), (true, "handle"), (has(Cap::DeviceVhostUserFs), "virtiofs")];
    let redirection = Section::new("redirdev", vec![List::of("bus", &[(true, "usb")])]);
    let channels = [(true, "pty"), (true, "unix"), (spice, "spicevmc")];
    let networks = [(has(Cap::NetdevUser), "default"), (has(Cap::NetdevStream), "passt")];
    let panics = [
        (has(Cap::DevicePanic), "isa"),
        (is_pseries(machine, caps.arch), "pseries"),
        (caps.arch.is_x86(), "hyperv"),
        (caps.arch.is_s390(), "s390"),
        (has(Cap::DevicePanicPci), "pvpanic"),
    ];
    vec![
        disk(caps, machine),
        graphics(caps),
        video(caps),
        hostdev(caps, host),
        rng(caps),
        Section::new("filesystem", vec![List::of("driverType", &filesystems)]),
        tpm(caps, host.swtpm),
        Section { supported: has(Cap::UsbRedir), ..redirection },
        Section::new("channel", vec![List::of("type", &channels)]),
        crypto(caps),
        Section::new("interface", vec![List::of("backendType", &networks)]),
        some("panic", List::of("model", &panics)),
    ]
}

fn graphics(caps: &QemuCaps) -> Section {
    let types = [
        (caps.supports(Cap::Sdl), "sdl"),
        (caps.supports(Cap::Vnc), "vnc"),
        (caps.supports(Cap::Spice), "spice"),
        (caps.supports(Cap::EglHeadless), "egl-headless"),
        (caps.supports(Cap::DisplayDbus), "dbus"),
    ];
    Section::new("graphics", vec![List::of("type", &types)])
}

fn video(caps: &QemuCaps) -> Section {
    let models = [
        (caps.supports(Cap::DeviceVga), "vga"),
        (caps.supports(Cap::DeviceCirrusVga), "cirrus"),
        (caps.supports(Cap::DeviceVmwareSvga), "vmvga"),
        (caps.supports(Cap::DeviceQxl), "qxl"),
        (caps.supports(Cap::DeviceVirtioGpu), "virtio"),
        (true, "none"),
        (caps.supports(Cap::DeviceBochsDisplay), "bochs"),
        (caps.supports(Cap::DeviceRamfb), "ramfb"),
    ];
    Section::new("video", vec![List::of("modelType", &models)])
}

fn rng(caps: &QemuCaps) -> Section {
    let has = |cap| caps.supports(cap);
    let device = has(Cap::DeviceVirtioRng);
    let variants = device && has(Cap::VirtioPciTransitional);
    let models =
        [(device, "virtio"), (variants, "virtio-transitional"), (variants, "virtio-non-transitional")];
    let backends = [
        (has(Cap::ObjectRngRandom), "random"),
        (has(Cap::ObjectRngEgd), "egd"),
        (has(Cap::ObjectRngBuiltin), "builtin"),
    ];
    Section::new("rng", vec![List::of("model", &models), List::of("backendModel", &backends)])
}

fn crypto(caps: &QemuCaps) -> Section {
    let models = List::of("model", &[(caps.supports(Cap::DeviceVirtioCrypto), "virtio")]);
    let backends = [(true, "builtin"), (caps.supports(Cap::ObjectCryptoLkcf), "lkcf")];
    let lists = vec![models, List::of("type", &[(true, "qemu")]), List::of("backendModel", &backends)];
    Section::new("crypto", lists)
}

/// A section that is supported when its only list has something in it.
fn some(name: &'static str, list: List) -> Section {
    Section { supported: !list.values.is_empty(), ..Section::new(name, vec![list]) }
}

fn disk(caps: &QemuCaps, machine: &str) -> Section {
    let has = |cap| caps.supports(cap);
    let floppy = !is_pseries(machine, caps.arch);
    let transitional = has(Cap::VirtioPciTransitional);
    Section::new(
        "disk",
        vec![
            List::of("diskDevice", &[(true, "disk"), (true, "cdrom"), (floppy, "floppy"), (true, "lun")]),
            List::of(
                "bus",
                &[
                    (has_builtin_ide(machine, caps.arch), "ide"),
                    (floppy, "fdc"),
                    (true, "scsi"),
                    (true, "virtio"),
                    (has(Cap::DeviceUsbStorage), "usb"),
                    (has(Cap::Ich9Ahci), "sata"),
                ],
            ),
            List::of(
                "model",
                &[
                    (true, "virtio"),
                    (transitional, "virtio-transitional"),
                    (transitional, "virtio-non-transitional"),
                ],
            ),
        ],
    )
}

fn hostdev(caps: &QemuCaps, host: HostFacts<'_>) -> Section {
    let usb = [
        Cap::Piix3UsbUhci,
        Cap::Piix4UsbUhci,
        Cap::UsbEhci,
        Cap::Ich9UsbEhci1,
        Cap::Vt82c686bUsbUhci,
        Cap::PciOhci,
        Cap::NecUsbXhci,
        Cap::DeviceQemuXhci,
    ];
    let usb = usb.into_iter().any(|cap| caps.supports(cap));
    let vfio = host.vfio && caps.supports(Cap::DeviceVfioPci);
    Section::new(
        "hostdev",
        vec![
            List::of("mode", &[(true, "subsystem")]),
            List::of(
                "startupPolicy",
                &[(true, "default"), (true, "mandatory"), (true, "requisite"), (true, "optional")],
            ),
            List::of("subsysType", &[(usb, "usb"), (true, "pci"), (true, "scsi")]),
            List::of("capsType", &[]),
            List::of("pciBackend", &[(vfio, "default"), (vfio, "vfio")]),
        ],
    )
}

fn tpm(caps: &QemuCaps, swtpm: Option<&[&'static str]>) -> Section {
    let has = |cap| caps.supports(cap);
    let models = List::of(
        "model",
        &[
            (has(Cap::DeviceTpmTis), "tpm-tis"),
            (has(Cap::DeviceTpmCrb), "tpm-crb"),
            (has(Cap::DeviceTpmSpapr), "tpm-spapr"),
            (has(Cap::DeviceSpaprTpmProxy), "spapr-tpm-proxy"),
        ],
    );
    let emulated = swtpm.is_some() && has(Cap::DeviceTpmEmulator);
    let backends =
        [(has(Cap::DeviceTpmPassthrough), "passthrough"), (emulated, "emulator"), (emulated, "external")];
    let versions: Vec<_> = swtpm.unwrap_or_default().iter().map(|version| (true, *version)).collect();
    let mut lists = vec![models, List::of("backendModel", &backends)];
    if !versions.is_empty() {
        lists.push(List::of("backendVersion", &versions));
    }
    let supported = lists.first().is_some_and(|models| !models.values.is_empty());
    Section { supported, ..Section::new("tpm", lists) }
}

/// libvirt's names of Hyper-V enlightenments, in its order.
const HYPERV: [&str; 17] = [
    "relaxed",
    "vapic",
    "spinlocks",
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "vendor_id",
    "frequencies",
    "reenlightenment",
    "tlbflush",
    "ipi",
    "evmcs",
    "avic",
    "emsr_bitmap",
    "xmm_input",
];

fn features(caps: &QemuCaps, machine: &str) -> Vec<Section> {
    let has = |cap| caps.supports(cap);
    let mut features = vec![
        Section::plain("gic", false),
        Section::plain("vmcoreinfo", has(Cap::DeviceVmcoreinfo)),
        Section::plain("genid", has(Cap::DeviceVmgenid)),
        Section::plain("backingStoreInput", true),
        Section::plain("backup", true),
        Section::plain("async-teardown", has(Cap::RunWithAsyncTeardown)),
    ];
    if caps.arch.is_s390() {
        features.push(Section::plain("s390-pv", false));
    }
    features.push(Section::plain("ps2", has(Cap::MachineI8042Opt) && has_ps2_switch(machine, caps.arch)));
    features.push(Section::plain("sev", false));
    features.push(Section::plain("sgx", false));
    let offered = |name: &&str| caps.hyperv.iter().any(|known| known.replace('-', "_") == **name);
    let hyperv: Vec<String> = HYPERV.iter().filter(|name| offered(name)).map(|name| (*name).into()).collect();
    if !hyperv.is_empty() {
        features.push(Section::new("hyperv", vec![List { name: "features", values: hyperv }]));
    }
    features.push(some(
        "launchSecurity",
        List::of(
            "sectype",
            &[
                (has(Cap::SevGuest), "sev"),
                (has(Cap::SevSnpGuest), "sev-snp"),
                (has(Cap::S390PvGuest) && has(Cap::MachineConfidentalGuestSupport), "s390-pv"),
            ],
        ),
    ));
    features
}

fn is_i440fx(machine: &str, arch: Arch) -> bool {
    let versioned = ["pc-0.", "pc-1.", "pc-i440fx-", "rhel"];
    arch.is_x86() && (machine == "pc" || versioned.iter().any(|prefix| machine.starts_with(prefix)))
}

fn has_builtin_ide(machine: &str, arch: Arch) -> bool {
    is_i440fx(machine, arch) || ["malta", "sun4u", "g3beige"].contains(&machine)
}

fn has_ps2_switch(machine: &str, arch: Arch) -> bool {
    let q35 = arch.is_x86() && (machine == "q35" || machine.starts_with("pc-q35"));
    let xenfv = arch.is_x86() && (machine == "xenfv" || machine.starts_with("xenfv-"));
    q35 || xenfv || machine == "isapc" || is_i440fx(machine, arch)
}

fn is_pseries(machine: &str, arch: Arch) -> bool {
    arch.is_ppc64() && (machine == "pseries" || machine.starts_with("pseries-"))
}

#[cfg(test)]
mod tests {
    use super::super::probe::tests::caps;
    use super::*;

    fn document(accel: Accel, machine: &str, map: Option<&CpuMap>) -> String {
        let caps = caps();
        let subject =
            Subject { arch: Arch::X86_64, accel, machine: Some(caps.canonical_machine(accel, machine)) };
        let max_vcpus = (accel == Accel::Kvm).then_some(1024);
        let host = HostFacts { max_vcpus, phys_bits: Some(48), vfio: false, swtpm: None, cpu_map: map };
        domain_capabilities(&caps, subject, host).to_xml()
    }

    /// libvirt's own answers on the host where the replies were recorded, without the models that were left out.
    #[test]
    fn the_documents_are_libvirts() {
        let directory = std::path::Path::new("/usr/share/libvirt/cpu_map");
        let map = CpuMap::load(|name| std::fs::read_to_string(directory.join(name)));
        let map = map.expect("libvirt-common is installed");
        let kvm = include_str!("../../../tests/data/capabilities/domcapabilities-kvm.xml");
        let tcg = include_str!("../../../tests/data/capabilities/domcapabilities-tcg.xml");
        assert_eq!(document(Accel::Kvm, "pc", Some(&map)), kvm);
        assert_eq!(document(Accel::Tcg, "pc", Some(&map)), tcg);
    }

    #[test]
    fn tpms_are_what_the_hosts_emulator_has() {
        let of =
            |swtpm| tpm(&caps(), swtpm).lists.iter().map(|list| list.values.join(" ")).collect::<Vec<_>>();
        assert_eq!(of(None), ["tpm-tis tpm-crb", "passthrough"]);
        let versions = ["1.2", "2.0"];
        assert_eq!(of(Some(&versions)), ["tpm-tis tpm-crb", "passthrough emulator external", "1.2 2.0"]);
        assert_eq!(of(Some(&[])), ["tpm-tis tpm-crb", "passthrough emulator external"]);
    }

    #[test]
    fn machines_and_missing_descriptions_make_a_difference() {
        let text = document(Accel::Kvm, "q35", None);
        assert!(
            text.contains("<machine>pc-q35-10.0</machine>") && text.contains("<vcpu max='1024'/>"),
            "{text}"
        );
        assert!(!text.contains("<value>ide</value>"), "q35 has no IDE: {text}");
        assert!(text.contains("<mode name='host-model' supported='no'/>"), "{text}");
        assert!(text.contains("<model usable='no' vendor='unknown'>EPYC-Genoa</model>"), "{text}");
    }
}
