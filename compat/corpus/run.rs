//! One case: what upstream's test program sets up, and the comparisons.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ferrovirt::conf::capabilities::cpu::CpuMap;
use ferrovirt::conf::devices::{
    BackendKind, DiskDevice, HostdevSource, InterfaceKind, ScsiPlace, TpmBackend,
};
use ferrovirt::conf::domain::Domain;
use ferrovirt::conf::domain::defaults::{Age, Facts, Firmware, Generator};
use ferrovirt::conf::xml::Form;
use ferrovirt::error::Error;
use ferrovirt::qemu::block;
use ferrovirt::qemu::capabilities::{QemuCaps, resolve_guest_cpu};
use ferrovirt::qemu::command::{
    self, Context, Descriptors, HostNode, ImageDescriptors, InterfaceDescriptors, Need, Opened, Sandbox,
    SecretNeed, SecretSource, Settings, VsockDescriptor,
};
use ferrovirt::qemu::facts::facts;
use ferrovirt::qemu::firmware;
use ferrovirt::qemu::hugepages::Hugetlbfs;
use ferrovirt::qemu::prepare::{Chooser, Place, prepare};
use ferrovirt::qemu::process::short_name;
use ferrovirt::qemu::secret::MasterKey;
use ferrovirt::util::bitmap::Bitmap;
use ferrovirt::util::mac::Mac;
use ferrovirt::util::paths::Scope;
use ferrovirt::util::uuid::Uuid;

use crate::args::{self, Command};
use crate::cases::{Case, Expect};
use crate::replies::{self, Machines};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Comparison {
    Xml,
    Argv,
    Errors,
}

impl Comparison {
    pub(crate) const ALL: [Self; 3] = [Self::Xml, Self::Argv, Self::Errors];

    pub(crate) fn name(self) -> &'static str {
        ["xml", "argv", "errors"][self as usize]
    }

    pub(crate) fn title(self) -> &'static str {
        ["definition as printed", "QEMU's arguments", "refusals"][self as usize]
    }
}

/// From good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Same,
    Differs,
    /// Refused by us only.
    Refused,
    /// Refused by upstream only.
    Accepted,
}

impl Verdict {
    pub(crate) const ALL: [Self; 4] = [Self::Same, Self::Differs, Self::Refused, Self::Accepted];

    pub(crate) fn name(self) -> &'static str {
        ["same", "differs", "refused", "accepted"][self as usize]
    }
}

/// How one comparison came out.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) comparison: Comparison,
    pub(crate) verdict: Verdict,
    /// Upstream's and ours, where they part.
    pub(crate) differences: Vec<(String, String)>,
    /// Settings of the daemon that the case is run under, where they are not the usual.
    pub(crate) settings: String,
}

impl Outcome {
    /// The first difference, short enough for a line.
    pub(crate) fn reason(&self) -> String {
        let short = |text: &str| text.trim().chars().take(120).collect::<String>();
        let difference = match (self.verdict, self.differences.first()) {
            (Verdict::Refused, Some((_, ours))) => short(ours),
            (Verdict::Accepted, Some((theirs, _))) => short(theirs),
            (_, Some((theirs, ours))) => {
                let common = theirs.chars().zip(ours.chars()).take_while(|(a, b)| a == b).count();
                let from = |text: &str| text.chars().skip(common.saturating_sub(20)).collect::<String>();
                format!("{} | {}", short(&from(theirs)), short(&from(ours)))
            }
            (_, None) => String::new(),
        };
        match self.settings.as_str() {
            "" => difference,
            settings => format!("with {settings}: {difference}"),
        }
    }
}

pub(crate) struct Runner {
    tests: PathBuf,
    caps: HashMap<String, QemuCaps>,
    cpu_map: CpuMap,
    firmwares: Vec<Firmware>,
}

/// Numbers that upstream's test program gives out.
mod fds {
    pub(super) const SOCKET: i32 = 1729;
    pub(super) const FILE: i32 = 1750;
    pub(super) const LOG: i32 = 1751;
    pub(super) const TAP: i32 = 3;
    pub(super) const DEVICE: i32 = 3;
    pub(super) const BRIDGE: i32 = 102;
    pub(super) const VHOST: i32 = 44;
    pub(super) const VSOCK: i32 = 6789;
    pub(super) const TPM: i32 = 1730;
    pub(super) const TPM_CANCEL: i32 = 1731;
}

/// The moment of every case, and how far its time zone is from UTC.
const NOW_S: i64 = 1_234_567_890;
const LOCAL_OFFSET_S: i64 = -1800;

impl Runner {
    pub(crate) fn new(tests: &Path) -> Self {
        let models = tests.join("../src/cpu_map");
        let cpu_map =
            CpuMap::load(|name| fs::read_to_string(models.join(name))).expect("upstream names models");
        let descriptors = tests.join("qemufirmwaredata");
        let directories = ["usr/share/qemu/firmware", "etc/qemu/firmware"].map(|name| descriptors.join(name));
        let firmwares = firmware::descriptors(&directories);
        Self { tests: tests.to_owned(), caps: HashMap::new(), cpu_map, firmwares }
    }

    pub(crate) fn run(&mut self, case: &Case) -> Vec<Outcome> {
        let settings = case.settings.iter().filter(|(name, value)| {
            name.as_str() != "TEST_TPM_ENV_VAR" && !["", "0", "false"].contains(&value.as_str())
        });
        let settings: Vec<String> = settings.map(|(name, value)| format!("{name}={value}")).collect();
        let mut outcomes = self.compare(case);
        for outcome in &mut outcomes {
            outcome.settings = settings.join(" ");
        }
        outcomes
    }

    fn compare(&mut self, case: &Case) -> Vec<Outcome> {
        self.load(case);
        let caps = &self.caps[&caps_key(case)];
        let age = if case.suffix.ends_with("abi-update") { Age::New } else { Age::Known };
        let data = self.tests.join("qemuxmlconfdata");
        let file = |ending: &str| fs::read_to_string(data.join(format!("{}{ending}", case.id())));
        let input = fs::read_to_string(data.join(format!("{}.xml", case.name))).expect("it was there before");
        let defined = guarded(|| define(&input, caps, &self.firmwares, age));
        let mut outcomes = Vec::new();
        if case.expect == Expect::DefineFails {
            let theirs = file(".err").unwrap_or_default();
            outcomes.push(refusal(&theirs, defined.map(|_| ())));
            return outcomes;
        }
        let printed = defined.as_ref().map(|domain| domain.to_xml(Form::SECURE)).map_err(Clone::clone);
        let expected = file(".xml").unwrap_or_default();
        outcomes.push(compared(Comparison::Xml, printed.map(|text| (lines(&expected), lines(&text)))));
        let started = defined.and_then(|domain| guarded(|| start(domain, caps, &self.cpu_map, case)));
        if case.expect == Expect::StartFails {
            outcomes.push(refusal(&file(".err").unwrap_or_default(), started.map(|_| ())));
        } else {
            let theirs = args::parse(&file(".args").unwrap_or_default());
            let both = started.map(|ours| (flat(&theirs), flat(&ours)));
            outcomes.push(compared(Comparison::Argv, both));
        }
        outcomes
    }

    fn load(&mut self, case: &Case) {
        let (directory, key) = (self.tests.join("qemucapabilitiesdata"), caps_key(case));
        self.caps.entry(key).or_insert_with(|| {
            let latest = case.version == "latest";
            let version =
                if latest { latest_version(&directory, &case.variant) } else { case.version.clone() };
            let path = directory.join(format!("caps_{version}_x86_64{}.replies", case.variant));
            replies::capabilities(&path, if latest { Machines::ByAlias } else { Machines::AsRecorded })
        });
    }
}

fn caps_key(case: &Case) -> String {
    format!("{}{}", case.version, case.variant)
}

fn latest_version(directory: &Path, variant: &str) -> String {
    let ending = format!("_x86_64{variant}.replies");
    let names = fs::read_dir(directory).expect("upstream has recordings").filter_map(Result::ok);
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let number =
        |version: &str| version.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
    let versions =
        names.filter_map(|name| Some(name.strip_prefix("caps_")?.strip_suffix(&ending)?.to_owned()));
    versions.max_by_key(|version| number(version)).expect("at least one recording")
}

fn guarded<T>(work: impl FnOnce() -> Result<T, Error>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.message().to_owned()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or_default();
            Err(format!("panic: {text}"))
        }
    }
}

fn define(input: &str, caps: &QemuCaps, firmwares: &[Firmware], age: Age) -> Result<Domain, Error> {
    let mut domain = Domain::parse(input, Form::INACTIVE)?;
    let facts = Facts { age, firmwares, ..facts(caps, &domain) };
    domain.defaults(&facts, &mut Fixed)?;
    domain.validate(&facts)?;
    Ok(domain)
}

/// What upstream's test program draws instead of chance.
struct Fixed;

impl Generator for Fixed {
    fn uuid(&mut self) -> Uuid {
        let mut bytes = std::array::from_fn(|at| at as u8);
        // What makes it a random one.
        bytes[6] = 0x46;
        bytes[8] = 0x88;
        Uuid(bytes)
    }

    fn mac(&mut self) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, 0])
    }
}

/// The first port of each kind is always free.
struct First {
    spice_tls: bool,
}

impl Chooser for First {
    fn vnc_port(&mut self) -> Option<u16> {
        Some(5900)
    }

    fn spice_port(&mut self) -> Option<u16> {
        Some(5901)
    }

    fn spice_tls_port(&mut self) -> Option<u16> {
        self.spice_tls.then_some(5902)
    }

    fn websocket_port(&mut self) -> Option<u16> {
        Some(5700)
    }
}

fn start(mut domain: Domain, caps: &QemuCaps, cpu_map: &CpuMap, case: &Case) -> Result<Command, Error> {
    let name = short_name(-1, &domain.name);
    let state_dir = PathBuf::from(format!("/var/lib/libvirt/qemu/domain-{name}"));
    let memory_dir = PathBuf::from(format!("/var/lib/libvirt/qemu/ram/{name}"));
    find_host_devices(&mut domain);
    let channel_dir = PathBuf::from(format!("/var/run/libvirt/qemu/channel/{name}"));
    let place = Place {
        id: -1,
        state_dir: &state_dir,
        channel_dir: &channel_dir,
        vnc_listen: "127.0.0.1",
        render_node: Some("/dev/dri/foo"),
    };
    let accel = command::accel_of(&domain);
    if let Some(cpu) = &mut domain.cpu {
        resolve_guest_cpu(cpu, caps, accel, Some(cpu_map))?;
    }
    let settings = settings(case);
    prepare(&mut domain, &place, &mut First { spice_tls: is_on(case, "spiceTLS") })?;
    find_sockets(&mut domain, &name, &state_dir);
    block::number_images(&mut domain, &mut 0);
    let mut descriptors = descriptors(&mut domain);
    let key = MasterKey(std::array::from_fn(|at| at as u8));
    for SecretNeed { id, source } in command::secrets(&domain) {
        let value = match source {
            SecretSource::Text(text) => text,
            SecretSource::Kept { .. } => "AQCVn5hO6HzFAhAAq0NCv8jtJcIcE+HOBlMQ1A".to_owned(),
        };
        let vector = std::array::from_fn(|at| at as u8);
        descriptors.secrets.insert(id, key.seal(value.as_bytes(), vector));
    }
    let inherited = [("PATH", "/bin"), ("USER", "test"), ("LOGNAME", "test")];
    let context = Context {
        scope: Scope::System,
        state_dir: &state_dir,
        memory_dir: &memory_dir,
        monitor: fds::SOCKET,
        descriptors: &descriptors,
        sandbox: Sandbox::On,
        now_s: NOW_S,
        local_offset_s: LOCAL_OFFSET_S,
        incoming: case.incoming.as_deref(),
        settings: &settings,
        inherited_env: &inherited.map(|(name, value)| (name.to_owned(), value.to_owned())),
    };
    let line = command::build(&domain, caps, &context)?;
    let mut env: Vec<String> = line.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    env.sort_unstable();
    let args = std::iter::once(line.program).chain(line.args).collect();
    Ok(Command { env, args })
}

fn is_on(case: &Case, name: &str) -> bool {
    case.settings.get(name).is_some_and(|value| value == "1" || value == "true")
}

/// What the case says of qemu.conf and of the host.
fn settings(case: &Case) -> Settings {
    let on = |name: &str| is_on(case, name);
    let directory = |name: &str, path: &str| on(name).then(|| path.to_owned());
    Settings {
        spice_password: Some("123456".to_owned()),
        spice_tls_dir: directory("spiceTLS", "/etc/pki/libvirt-spice"),
        spice_sasl_dir: directory("spiceSASL", "/etc/sasl2"),
        vnc_sasl_dir: directory("vncSASL", "/etc/sasl2"),
        vnc_tls_dir: directory("vncTLS", "/etc/pki/libvirt-vnc"),
        vnc_tls_verify: on("vncTLSx509verify"),
        chardev_tls: on("chardevTLS"),
        chardev_tls_dir: Some("/etc/pki/libvirt-chardev".to_owned()),
        nbd_tls_dir: Some("/etc/pki/libvirt-nbd".to_owned()),
        hugetlbfs: Some(
            [(2048, "/dev/hugepages2M"), (1 << 20, "/dev/hugepages1G")]
                .map(|(page_kib, mount)| Hugetlbfs { page_kib, mount: mount.into() })
                .to_vec(),
        ),
        numa_nodes: Some((0..4).map(|id| HostNode { id, cpus: (4 * id..4 * id + 4).collect() }).collect()),
        placement_advice: Bitmap::parse("0-3", 8).ok(),
        dump_guest_core: on("dumpGuestCore"),
    }
}

/// Where the programs beside QEMU would listen.
fn find_sockets(domain: &mut Domain, name: &str, state_dir: &Path) {
    for filesystem in domain.devices.filesystems.iter_mut().filter(|filesystem| filesystem.is_virtiofs()) {
        let alias = filesystem.info.alias.as_deref().unwrap_or_default();
        filesystem.socket = Some(state_dir.join(format!("{alias}-fs.sock")).display().to_string().into());
    }
    for tpm in &mut domain.devices.tpms {
        if let TpmBackend::Emulator(emulator) = &mut tpm.backend {
            emulator.socket = Some("/dev/test".into());
        }
    }
    for disk in domain.devices.disks.iter_mut().filter(|disk| disk.device == DiskDevice::Cdrom) {
        disk.storage.is_host_cdrom = disk.storage.path() == Some("/dev/cdrom");
    }
    for card in domain.devices.interfaces.iter_mut().filter(|it| it.backend.kind == Some(BackendKind::Passt))
    {
        let alias = card.info.alias.as_deref().unwrap_or_default();
        card.backend.socket = Some(format!("/var/run/libvirt/qemu/passt/{name}-{alias}.socket").into());
    }
}

/// Upstream's test program has one USB device and one SCSI device.
fn find_host_devices(domain: &mut Domain) {
    for hostdev in &mut domain.devices.hostdevs {
        match &mut hostdev.source {
            HostdevSource::Usb(usb) if usb.bus == 0 && usb.device == 0 => (usb.bus, usb.device) = (14, 6),
            HostdevSource::Scsi(scsi) => {
                if let ScsiPlace::Host { path, .. } = &mut scsi.place {
                    *path = Some("/dev/sg0".into());
                }
            }
            _ => {}
        }
    }
}

fn descriptors(domain: &mut Domain) -> Descriptors {
    let mut descriptors = Descriptors::default();
    for need in command::needs(domain) {
        match need {
            Need::ListenUnix { name, .. } => {
                descriptors.chardevs.insert(name, Opened(fds::SOCKET));
            }
            Need::Device { name, .. } => {
                let number = if name.ends_with("-tpm") { fds::TPM } else { fds::DEVICE };
                descriptors.chardevs.insert(name, Opened(number));
            }
            Need::TpmCancel { name, .. } => {
                descriptors.chardevs.insert(name, Opened(fds::TPM_CANCEL));
            }
            Need::File { name, .. } => {
                let number = if name.ends_with("-log") { fds::LOG } else { fds::FILE };
                descriptors.chardevs.insert(name, Opened(number));
            }
            Need::Image { node, group } => {
                // What the test hands over, and as what.
                let (numbers, writable) = match &*group {
                    "testgroup2" => (vec![200, 205], false),
                    "testgroup5" => (vec![204], false),
                    "testgroup6" => (vec![247, 248], false),
                    "cdimage-rw" => (vec![208], true),
                    "raw-rw-base" => (vec![209], true),
                    _ => (vec![207], false),
                };
                descriptors.images.insert(node, ImageDescriptors { descriptors: numbers, writable });
            }
            Need::Vsock { alias, cid } => {
                let opened = VsockDescriptor { descriptor: fds::VSOCK, cid: cid.unwrap_or(42) };
                descriptors.vsocks.insert(alias, opened);
            }
            Need::Tap { alias, queues } => {
                let mut interfaces = domain.devices.interfaces.iter();
                let interface = interfaces.find(|it| it.info.alias.as_deref() == Some(&alias));
                let kind = interface.map(|interface| interface.kind);
                let first = if kind == Some(InterfaceKind::Ethernet) { fds::TAP } else { fds::BRIDGE };
                let count = queues.cast_signed();
                let virtio = interface.is_some_and(|it| it.is_virtio());
                let opened = InterfaceDescriptors {
                    tap: (first..first + count).collect(),
                    vhost: if virtio { (fds::VHOST..fds::VHOST + count).collect() } else { Vec::new() },
                };
                descriptors.interfaces.insert(alias, opened);
            }
        }
    }
    descriptors
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

/// An option and its value on one line.
fn flat(command: &Command) -> Vec<String> {
    let mut lines: Vec<String> = command.env.clone();
    for (at, arg) in command.args.iter().enumerate() {
        match lines.last_mut() {
            Some(last) if at > 1 && !arg.starts_with('-') => {
                last.push(' ');
                last.push_str(arg);
            }
            _ => lines.push(arg.clone()),
        }
    }
    lines
}

type Both = (Vec<String>, Vec<String>);

fn compared(comparison: Comparison, both: Result<Both, String>) -> Outcome {
    let (verdict, differences) = match both {
        Err(refused) => (Verdict::Refused, vec![(String::new(), refused)]),
        Ok((theirs, ours)) if theirs == ours => (Verdict::Same, Vec::new()),
        Ok((theirs, ours)) => (Verdict::Differs, differences(&theirs, &ours)),
    };
    Outcome { comparison, verdict, differences, settings: String::new() }
}

fn refusal(theirs: &str, ours: Result<(), String>) -> Outcome {
    let theirs = theirs.trim_end().to_owned();
    let (verdict, ours) = match ours {
        Ok(()) => (Verdict::Accepted, String::new()),
        Err(ours) if ours == theirs => (Verdict::Same, ours),
        Err(ours) => (Verdict::Differs, ours),
    };
    let differences = vec![(theirs, ours)];
    Outcome { comparison: Comparison::Errors, verdict, differences, settings: String::new() }
}

/// Lines of one side only, paired as far as they go.
fn differences(theirs: &[String], ours: &[String]) -> Vec<(String, String)> {
    let (mut here, mut there) = (0, 0);
    let mut found = Vec::new();
    while here < theirs.len() || there < ours.len() {
        match (theirs.get(here), ours.get(there)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => {
                let ahead = theirs[here..].iter().position(|line| line == b);
                let behind = ours[there..].iter().position(|line| line == a);
                match (ahead, behind) {
                    (Some(skip), back) if back.is_none_or(|back| skip <= back) => {
                        let missing = &theirs[here..here + skip];
                        found.extend(missing.iter().map(|line| (line.clone(), String::new())));
                        here += skip;
                    }
                    (_, Some(skip)) => {
                        let extra = &ours[there..there + skip];
                        found.extend(extra.iter().map(|line| (String::new(), line.clone())));
                        there += skip;
                    }
                    _ => found.push((a.clone(), b.clone())),
                }
            }
            (a, b) => found.push((a.cloned().unwrap_or_default(), b.cloned().unwrap_or_default())),
        }
        (here, there) = (here + 1, there + 1);
    }
    found
}
