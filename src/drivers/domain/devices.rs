//! What a guest's devices need of the host before its QEMU is started, and what QEMU says about them after.

use std::fs::OpenOptions;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::Domains;
use super::associated::not_associated;
use super::ports::Ports;
use crate::conf::devices::{Devices, LinkState, Pstore};
use crate::conf::domain::Domain;
use crate::error::{Error, Origin, Result};
use crate::qemu::block::{Passed, StorageError};
use crate::qemu::capabilities::Accel;
use crate::qemu::command::{
    self, Descriptors, HostNode, ImageDescriptors, InterfaceDescriptors, Need, Opened, Settings,
    VsockDescriptor,
};
use crate::qemu::hugepages;
use crate::qemu::log_limit::StdioHandler;
use crate::qemu::monitor::Chardev;
use crate::qemu::network::{self, Accelerated, Wired};
use crate::qemu::overlay;
use crate::qemu::prepare::Place;
use crate::qemu::process::{Files, Prepared};
use crate::qemu::secret::MasterKey;
use crate::qemu::security::{self, Security};
use crate::qemu::{self, block};
use crate::util::bitmap::Bitmap;
use crate::util::file::{self, Durability};
use crate::util::random;
use crate::util::vsock;

/// Where screens are offered that say nothing else.
const VNC_LISTEN: &str = "127.0.0.1";

/// Fills in what the definition leaves to the daemon for this run: names, ports, sockets, the images below
/// the disks. Reads images, so it runs where that may block. Answers the highest number of a block node.
pub(super) fn prepare(
    definition: &mut Domain,
    id: i32,
    files: &Files,
    ports: &Ports,
    security: &Security,
    passed: &Passed,
) -> Result<u32> {
    let render_node = render_node();
    let place = Place {
        id,
        state_dir: &files.directory,
        channel_dir: &files.channels,
        vnc_listen: VNC_LISTEN,
        render_node: render_node.as_deref(),
    };
    make_memory_directory(definition, files, security)?;
    qemu::host_devices::resolve(&mut definition.devices)?;
    ports.take_named(definition)?;
    let mut choice = ports.choice(definition.uuid);
    qemu::prepare::prepare(definition, &place, &mut choice)?;
    let created = qemu::firmware::create_nvram(definition).map_err(|error| {
        let sentence = error.to_string();
        Error::io(sentence, error.source)
    })?;
    if let (Some(path), Some(ids)) = (created, security.default_ids()) {
        security::give_for_good(&path, ids)?;
    }
    definition.devices.pstores.iter().try_for_each(make_store)?;
    let mut last_node = 0;
    block::number_images(definition, &mut last_node);
    let reader = security.images_are_of(definition)?;
    let mut disks = std::mem::take(&mut definition.devices.disks);
    let detected = disks.iter_mut().try_for_each(|disk| block::detect_chain(disk, reader, passed));
    definition.devices.disks = disks;
    detected.map_err(|error| explained(error, definition, security))?;
    overlay::put_on_top(&mut definition.devices.disks, &definition.name);
    block::number_images(definition, &mut last_node);
    Ok(last_node)
}

impl Domains {
    /// Refuses devices of the host that another guest has.
    pub(super) fn refuse_taken(&self, guest: &Domain, devices: &Devices) -> Result<()> {
        if devices.hostdevs.is_empty() && devices.interfaces.is_empty() {
            return Ok(());
        }
        let others: Vec<_> =
            self.list.all().iter().filter_map(|object| object.state().live.clone()).collect();
        let others = others.iter().filter(|other| other.uuid != guest.uuid);
        qemu::host_devices::refuse_taken(devices, others.map(|other| (&*other.name, &other.devices)))?;
        Ok(())
    }
}

/// Makes the directory of memory that is in files.
pub(super) fn make_memory_directory(definition: &Domain, files: &Files, security: &Security) -> Result<()> {
    if !command::has_memory_in_files(definition) {
        return Ok(());
    }
    let directory = &files.memory;
    file::make_directory(directory, 0o700)
        .map_err(|error| Error::io(format_args!("Unable to create {}", directory.display()), error))?;
    Ok(security.hand_over(definition, directory)?)
}

/// Where a guest keeps what it wants to find again: what is there stays, and has the size that the guest expects.
fn make_store(pstore: &Pstore) -> Result<()> {
    let Some(path) = pstore.path.as_deref().map(Path::new) else { return Ok(()) };
    let failed = |what: &str| {
        let sentence = format!("{what} '{}'", path.display());
        move |error| Error::io(sentence, error)
    };
    let directory = path.parent().map_or(Ok(()), std::fs::create_dir_all);
    directory.map_err(failed("cannot create the directory of file"))?;
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.map_err(failed("cannot create file"))?;
    file.set_len(pstore.size.0.saturating_mul(1024)).map_err(failed("Failed to truncate file"))
}

/// What the host has for a guest: pages and NUMA nodes. Directories for huge pages are made.
pub(super) fn settings(definition: &Domain, files: &Files, security: &Security) -> Result<Settings> {
    let backing = definition.memory_backing.as_deref();
    let devices = &definition.devices.memories;
    let wanted = backing.is_some_and(|backing| backing.hugepages.is_some())
        || devices.iter().any(|device| device.source.page_kib > 0);
    let hugetlbfs = if wanted { hugepages::mounted() } else { Vec::new() };
    for mounted in &hugetlbfs {
        let Some(name) = files.memory.file_name() else { continue };
        let directory = mounted.guest_directory(name);
        std::fs::create_dir_all(&directory)
            .map_err(|error| Error::io(format_args!("unable to create {}", directory.display()), error))?;
        security.hand_over(definition, &directory)?;
    }
    Ok(Settings { hugetlbfs: Some(hugetlbfs), numa_nodes: host_nodes(), ..Settings::default() })
}

/// The host's NUMA nodes; nothing where the kernel does not tell.
fn host_nodes() -> Option<Vec<HostNode>> {
    let read = |name: String, limit| {
        let text = std::fs::read_to_string(format!("/sys/devices/system/node/{name}")).ok()?;
        // A node of memory alone has no CPUs.
        if text.trim().is_empty() { Some(Bitmap::new()) } else { Bitmap::parse(text.trim(), limit).ok() }
    };
    let online = read("online".to_owned(), MAX_NODES)?;
    let nodes = online.iter().map(|id| {
        let cpus = read(format!("node{id}/cpulist"), MAX_CPUS).unwrap_or_default();
        HostNode { id, cpus }
    });
    Some(nodes.collect())
}

/// More than any host has.
const MAX_NODES: usize = 1024;
const MAX_CPUS: usize = 16_384;

/// Says of an image that QEMU's user cannot reach why that is.
pub(super) fn explained(error: StorageError, definition: &Domain, security: &Security) -> Error {
    let why = (|| {
        let ids = security.images_are_of(definition).ok()??;
        let gifts = security.of_devices(definition, &definition.devices).ok()?;
        security::explain(&gifts, ids).filter(|_| error.is_denied())
    })();
    match why {
        Some(why) => Error::from(error).with_way_out(&why),
        None => error.into(),
    }
}

/// The host's first graphics card, for screens that draw with one and name none.
fn render_node() -> Option<String> {
    let nodes =
        std::fs::read_dir("/dev/dri").ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let first = nodes.filter(|name| name.starts_with("renderD")).min()?;
    Some(format!("/dev/dri/{first}"))
}

/// Makes the key under which secrets travel to this QEMU, and puts it where QEMU finds it.
pub(super) fn write_master_key(files: &Files) -> Result<MasterKey> {
    let path = files.directory.join(MasterKey::FILE);
    let mut key = [0; MasterKey::LEN];
    random::fill(&mut key)
        .and_then(|()| file::replace(&path, &key, 0o600, Durability::Crash))
        .map_err(|error| Error::io(format_args!("cannot write '{}'", path.display()), error))?;
    Ok(MasterKey(key))
}

/// The key of a QEMU that runs.
pub(super) fn read_master_key(files: &Files) -> Result<MasterKey> {
    let path = files.directory.join(MasterKey::FILE);
    let mut key = [0; MasterKey::LEN];
    std::fs::File::open(&path)
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut key))
        .map_err(|error| Error::io(format_args!("cannot read '{}'", path.display()), error))?;
    Ok(MasterKey(key))
}

/// How descriptors get to a QEMU; answers the numbers that stand for them on its command line.
pub(super) trait Handover {
    fn listen(&mut self, path: &Path) -> Result<RawFd>;
    fn pass(&mut self, descriptor: OwnedFd) -> RawFd;
}

impl Handover for Prepared {
    fn listen(&mut self, path: &Path) -> Result<RawFd> {
        Ok(Self::listen(self, path)?)
    }

    fn pass(&mut self, descriptor: OwnedFd) -> RawFd {
        Self::pass(self, descriptor)
    }
}

impl Domains {
    /// Keeps what these devices write to files from filling the host's disk.
    pub(super) fn keep_bounded(&self, definition: &Domain) {
        if self.rules.stdio == StdioHandler::File {
            return;
        }
        let guest = Arc::from(&*definition.name);
        for need in command::needs(definition) {
            if let Need::File { path, .. } = need {
                self.written.add(&guest, Path::new(&path));
            }
        }
    }
}

/// Opens what QEMU gets as open descriptors.
pub(super) fn open(
    definition: &mut Domain,
    accel: Accel,
    passed: &Passed,
    prepared: &mut impl Handover,
) -> Result<Descriptors> {
    let mut descriptors = Descriptors::default();
    definition.devices.interfaces.iter().try_for_each(network::refuse_unsupported)?;
    if definition.launch_security.is_some() {
        return Err(Error::config_unsupported("launch security is not supported"));
    }
    for need in command::needs(definition) {
        match need {
            Need::ListenUnix { name, path } => {
                let number = prepared.listen(Path::new(&path))?;
                descriptors.chardevs.insert(name, Opened(number));
            }
            Need::File { name, path, append } => {
                let mut options = OpenOptions::new();
                let file = options.write(true).create(true).mode(0o600).append(append).truncate(!append);
                // A pipe that nobody reads is an error, not a start that waits for ever.
                let file = file.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
                let file = file
                    .open(&path)
                    .and_then(|file| {
                        let flags = rustix::fs::fcntl_getfl(&file)?;
                        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
                        Ok(file)
                    })
                    .map_err(|error| Error::io(format_args!("Unable to open file: {path}"), error))
                    .map_err(|error| error.from_origin(Origin::NONE))?;
                descriptors.chardevs.insert(name, Opened(prepared.pass(file.into())));
            }
            Need::Device { name, path } => {
                let device = OpenOptions::new().read(true).write(true).open(&path);
                let device =
                    device.map_err(|error| Error::io(format_args!("Failed to open {path}"), error))?;
                descriptors.chardevs.insert(name, Opened(prepared.pass(device.into())));
            }
            Need::TpmCancel { name, device } => {
                let path = cancel_path(Path::new(&device));
                let file = OpenOptions::new().write(true).open(&path);
                let sentence = format!("Could not open TPM device's cancel path {}", path.display());
                let file = file.map_err(|error| Error::io(sentence, error))?;
                descriptors.chardevs.insert(name, Opened(prepared.pass(file.into())));
            }
            Need::Image { node, group } => {
                let group = passed.get(&*group).ok_or_else(|| not_associated(&group))?;
                let mut image = ImageDescriptors { descriptors: Vec::new(), writable: group.writable };
                for file in &group.files {
                    let copy = file.try_clone().map_err(|error| {
                        Error::io("failed to duplicate a file descriptor that was handed over", error)
                    })?;
                    image.descriptors.push(prepared.pass(copy));
                }
                descriptors.images.insert(node, image);
            }
            Need::Vsock { alias, cid } => {
                let (device, cid) = open_vsock(cid)?;
                let vsocks = definition.devices.vsocks.iter_mut();
                for vsock in vsocks.filter(|vsock| vsock.info.alias.as_deref() == Some(&*alias)) {
                    vsock.cid.address = Some(cid);
                }
                let opened = VsockDescriptor { descriptor: prepared.pass(device), cid };
                descriptors.vsocks.insert(alias, opened);
            }
            Need::Tap { alias, .. } => {
                let wired = wire(definition, &alias, accel)?;
                let mut pass = |queue| prepared.pass(queue);
                let tap = wired.tap.into_iter().map(&mut pass).collect();
                let vhost = wired.vhost.into_iter().map(&mut pass).collect();
                descriptors.interfaces.insert(alias, InterfaceDescriptors { tap, vhost });
            }
        }
    }
    Ok(descriptors)
}

/// Where the kernel lets somebody take a command to a TPM back; some cannot.
fn cancel_path(device: &Path) -> PathBuf {
    let name = device.file_name().unwrap_or_default();
    let places = ["/sys/class/misc", "/sys/class/tpm"].map(|class| Path::new(class).join(name));
    let mut places = places.into_iter().map(|place| place.join("device/cancel"));
    places.find(|path| path.exists()).unwrap_or_else(|| "/dev/null".into())
}

/// The kernel's end of a vsock and the address that is now its guest's.
fn open_vsock(cid: Option<u32>) -> Result<(OwnedFd, u32)> {
    let device = vsock::open().map_err(|_| Error::config_unsupported("unable to open vhost-vsock device"))?;
    let (cid, sentence) = match cid {
        Some(cid) => (vsock::set_cid(&device, cid).map(|()| cid), "failed to set guest cid"),
        None => (vsock::acquire_cid(&device), "failed to acquire guest cid"),
    };
    Ok((device, cid.map_err(|error| Error::io(sentence, error).from_origin(Origin::NONE))?))
}

fn wire(definition: &mut Domain, alias: &str, accel: Accel) -> Result<Wired> {
    let mut interfaces = definition.devices.interfaces.iter_mut();
    let interface = interfaces
        .find(|interface| interface.info.alias.as_deref() == Some(alias))
        .ok_or_else(|| Error::internal_error(format!("no interface has the alias '{alias}'")))?;
    let accelerated = if accel == Accel::Kvm { Accelerated::Yes } else { Accelerated::No };
    Ok(network::wire(interface, accelerated)?)
}

/// The interfaces whose cable is out at start.
pub(super) fn unplugged(definition: &Domain) -> impl Iterator<Item = &str> {
    let interfaces = definition.devices.interfaces.iter();
    let down = interfaces.filter(|it| it.link == Some(LinkState::Down));
    down.filter_map(|interface| interface.info.alias.as_deref())
}

/// Fills in the terminals that QEMU has opened.
pub(super) fn note_terminals(definition: &mut Domain, opened: &[Chardev]) {
    let terminals = opened.iter().filter_map(|it| Some((it.label.clone(), it.pty()?.to_owned())));
    qemu::prepare::set_pty_paths(definition, &terminals.collect::<Vec<_>>());
}
