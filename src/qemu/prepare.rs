//! From a definition to the copy of it that runs: everything that can be decided without touching the host.
//!
//! ```text
//!   definition ─clone─► prepare ─► block::number_images ─► block::detect_chain ─► block::number_images
//!                          │                                                             │
//!                    id, aliases, ports, sockets, sizes    network::wire    command::build
//! ```

use std::path::Path;

use crate::conf::devices::{
    Address, BalloonModel, ChannelState, ChannelTarget, CharBackend, CharSource, Graphics, Listen,
    ListenPlace, MemoryDevice, SourceMode, Spice, SpiceMode, Tray, VirtioSerialAddress, Vnc,
};
use crate::conf::domain::{Domain, LoaderType};
use crate::conf::xml::YesNo;
use crate::conf::{ConfError, ErrorKind};
use crate::qemu::alias::assign_aliases;
use crate::qemu::command::CommandError;

/// What is known of the host and of this start.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    pub id: i32,
    /// The guest's own directory, `domain-ID-NAME`.
    pub state_dir: &'a Path,
    /// Where sockets of channels without a path go, `channel/ID-NAME`.
    pub channel_dir: &'a Path,
    /// Where screens are offered that say nothing else, such as `127.0.0.1`.
    pub vnc_listen: &'a str,
    /// The host's graphics card, for screens that draw with one and name none.
    pub render_node: Option<&'a str>,
}

/// Picks what no two guests of a host may share.
pub trait Chooser {
    /// A free port for a screen, from 5900.
    fn vnc_port(&mut self) -> Option<u16>;
    /// A free port for a SPICE screen.
    fn spice_port(&mut self) -> Option<u16> {
        self.vnc_port()
    }
    /// A free port for an encrypted SPICE screen; none where the host has no certificates for it.
    fn spice_tls_port(&mut self) -> Option<u16> {
        None
    }
    /// A free port for a screen over WebSocket, from 5700.
    fn websocket_port(&mut self) -> Option<u16>;
}

/// Makes `domain`, a copy of a complete definition, the running one.
pub fn prepare(
    domain: &mut Domain,
    place: &Place<'_>,
    chooser: &mut dyn Chooser,
) -> Result<(), CommandError> {
    domain.id = Some(place.id);
    domain.assign_usb_ports().map_err(refused)?;
    // A path that no descriptor on this host has leaves the variables without a place.
    let has_variables = domain.os.nvram.as_ref().is_some_and(|nvram| !nvram.place.is_empty());
    let loads = domain.os.loader.as_ref().is_some_and(|loader| {
        let needs_variables = loader.kind == Some(LoaderType::Pflash)
            && loader.readonly == Some(YesNo::Yes)
            && loader.stateless != Some(YesNo::Yes);
        loader.path.is_some() && (has_variables || !needs_variables)
    });
    if let (Some(kind), false) = (domain.os.firmware, loads || domain.os.kernel.is_some()) {
        let message =
            format!("Unable to find '{kind}' firmware that is compatible with the current configuration");
        return Err(CommandError::Failed(message));
    }
    align_memory(domain)?;
    order_vcpus(domain);
    assign_aliases(domain)?;
    let resource = domain.resource.get_or_insert_default();
    resource.partition.get_or_insert_with(|| "/machine".into());
    prepare_disks(domain);
    prepare_shared_memory(domain);
    prepare_streams(domain, place)?;
    for graphics in &mut domain.devices.graphics {
        prepare_graphics(graphics, place, chooser)?;
    }
    Ok(())
}

/// As [`prepare`], for devices that a running guest gets. Their aliases are there.
pub fn prepare_devices(domain: &mut Domain, place: &Place<'_>) -> Result<(), CommandError> {
    prepare_disks(domain);
    prepare_streams(domain, place)?;
    // Nobody knows of a port that is new whether the guest has opened it, until the guest does.
    for channel in &mut domain.devices.channels {
        if let ChannelTarget::Virtio { state, .. } = &mut channel.target {
            *state = None;
        }
    }
    Ok(())
}

/// As [`prepare`], for a guest that runs already and whose definition was made from its command line.
pub fn prepare_found(domain: &mut Domain, place: &Place<'_>) -> Result<(), CommandError> {
    prepare_streams(domain, place)
}

fn refused(error: ConfError) -> CommandError {
    match error.kind {
        ErrorKind::Failed => CommandError::Failed(error.message),
        ErrorKind::Unsupported => CommandError::Unsupported(error.message),
        _ => CommandError::Internal(error.message),
    }
}

/// No size in bytes is larger, in KiB.
const MAX_MEMORY_KIB: u64 = (i64::MAX >> 10).cast_unsigned();

fn align(kib: u64, step_kib: u64) -> u64 {
    kib.checked_next_multiple_of(step_kib).unwrap_or(u64::MAX)
}

fn overflow(what: impl std::fmt::Display) -> Result<(), CommandError> {
    Err(CommandError::Unsupported(format!("{what} overflowed after alignment")))
}

/// What is plugged in comes two MiB at a time.
pub fn align_devices(memories: &mut [MemoryDevice]) -> Result<(), CommandError> {
    for (at, device) in memories.iter_mut().enumerate() {
        device.target.size_kib = align(device.target.size_kib, 2048);
        if device.target.size_kib > MAX_MEMORY_KIB {
            return overflow(format_args!("size of memory module '{at}'"));
        }
    }
    Ok(())
}

/// QEMU takes memory in whole MiB.
fn align_memory(domain: &mut Domain) -> Result<(), CommandError> {
    let mut initial = align(domain.initial_memory_kib(), 1024);
    let numa = domain.cpu.as_deref_mut().and_then(|cpu| cpu.rest.numa.as_deref_mut());
    if let Some(numa) = numa.filter(|numa| !numa.cells.is_empty()) {
        initial = 0;
        for cell in &mut numa.cells {
            cell.memory_kib = align(cell.memory_kib, 1024);
            initial = initial.saturating_add(cell.memory_kib);
            if cell.memory_kib > MAX_MEMORY_KIB {
                return overflow(format_args!("memory size of NUMA node '{}'", cell.id));
            }
        }
    }
    if initial > MAX_MEMORY_KIB {
        return overflow("initial memory size");
    }
    if let Some(max) = &mut domain.memory.max {
        max.kib = align(max.kib, 1024);
        if max.kib > MAX_MEMORY_KIB {
            return overflow("maximum memory size");
        }
    }
    align_devices(&mut domain.devices.memories)?;
    let total = initial.saturating_add(domain.plugged_memory_kib());
    domain.memory.total_kib = total;
    let has_balloon = domain.devices.memballoons.iter().any(|it| it.model != BalloonModel::None);
    // Without a balloon nothing can take memory back.
    if !has_balloon || domain.memory.current_kib > total {
        domain.memory.current_kib = total;
    }
    Ok(())
}

/// CPUs that are named come in the order of their numbers; those that stay first.
fn order_vcpus(domain: &mut Domain) {
    let vcpus = &mut domain.vcpus.individual;
    if vcpus.iter().any(|vcpu| vcpu.order.is_some()) {
        return;
    }
    let mut order = 0;
    for stays in [true, false] {
        let enabled = vcpus.iter_mut().filter(|vcpu| vcpu.enabled == YesNo::Yes);
        for vcpu in enabled.filter(|vcpu| (vcpu.hotpluggable != Some(YesNo::Yes)) == stays) {
            order += 1;
            vcpu.order = Some(order);
        }
    }
}

fn prepare_disks(domain: &mut Domain) {
    for disk in &mut domain.devices.disks {
        disk.driver.cache = disk.effective_cache();
        if disk.storage.is_empty() {
            // What is put in later brings its own format. QEMU starts with the tray closed.
            disk.driver.format = None;
        }
        disk.target.tray = Tray::Closed;
    }
}

/// Where the servers of shared memory are that say nothing else.
fn prepare_shared_memory(domain: &mut Domain) {
    for shmem in &mut domain.devices.shmems {
        if let Some(server) = &mut shmem.server {
            let name = &shmem.name;
            server.path.get_or_insert_with(|| format!("/var/lib/libvirt/shmem-{name}-sock").into());
        }
    }
}

fn prepare_streams(domain: &mut Domain, place: &Place<'_>) -> Result<(), CommandError> {
    let devices = &mut domain.devices;
    for channel in &mut devices.channels {
        let ChannelTarget::Virtio { name, state } = &mut channel.target else { continue };
        *state = Some(ChannelState::Disconnected);
        if let CharBackend::Unix(unix) = &mut channel.source.backend
            && unix.path.is_none()
        {
            unix.mode = SourceMode::Bind;
            let name = socket_name(name.as_deref(), channel.info.address.as_ref())?;
            unix.path = Some(place.channel_dir.join(name).display().to_string().into());
        }
    }
    let serials = devices.serials.iter_mut().map(|it| &mut it.source);
    let parallels = devices.parallels.iter_mut().map(|it| &mut it.source);
    let consoles = devices.consoles.iter_mut().map(|it| &mut it.source);
    let channels = devices.channels.iter_mut().map(|it| &mut it.source);
    for source in serials.chain(parallels).chain(consoles).chain(channels) {
        if let CharBackend::Tcp(tcp, _) = &mut source.backend {
            tcp.tls.get_or_insert(YesNo::No);
        }
    }
    Ok(())
}

/// What the socket of a channel is called that says nothing about it.
fn socket_name(channel: Option<&str>, address: Option<&Address>) -> Result<String, CommandError> {
    match (channel, address) {
        // It must not lead out of the guest's own directory.
        (Some(name), _) if name.contains('/') || ["", ".", ".."].contains(&name) => {
            let message =
                format!("channel name '{name}' cannot be the name of a socket; a source path is needed");
            Err(CommandError::Unsupported(message))
        }
        (Some(name), _) => Ok(name.to_owned()),
        (None, Some(Address::VirtioSerial(VirtioSerialAddress { controller, bus, port }))) => {
            Ok(format!("vioser-{controller:02}-{bus:02}-{port:02}.sock"))
        }
        (None, _) => Err(CommandError::Internal("a channel without name and address".to_owned())),
    }
}

fn prepare_graphics(
    graphics: &mut Graphics,
    place: &Place<'_>,
    chooser: &mut dyn Chooser,
) -> Result<(), CommandError> {
    let drawn = match graphics {
        Graphics::Vnc(vnc) => return prepare_vnc(vnc, place, chooser),
        Graphics::Spice(spice) => {
            prepare_spice(spice, place, chooser)?;
            spice.options.gl.as_mut().filter(|gl| gl.enable == Some(YesNo::Yes))
        }
        Graphics::EglHeadless(headless) => Some(headless.gl.get_or_insert_default()),
        Graphics::Dbus(dbus) => dbus.gl.as_mut().filter(|gl| gl.enable == Some(YesNo::Yes)),
        Graphics::Sdl(_) | Graphics::Other(..) => None,
    };
    if let Some(gl) = drawn
        && gl.rendernode.is_none()
    {
        gl.rendernode = place.render_node.map(Into::into);
    }
    Ok(())
}

fn prepare_spice(
    spice: &mut Spice,
    place: &Place<'_>,
    chooser: &mut dyn Chooser,
) -> Result<(), CommandError> {
    if !choose_listeners(&mut spice.listens, place, "spice") {
        return Ok(());
    }
    let modes = || spice.options.channels.iter().map(|channel| channel.mode).chain(spice.default_mode);
    let (plain, encrypted) =
        (modes().any(|it| it == SpiceMode::Insecure), modes().any(|it| it == SpiceMode::Secure));
    let either = spice.default_mode.is_none();
    if spice.port == -1 || (spice.autoport && (plain || either)) {
        let full = "Unable to find an unused port in range 'remote' (5900-65535)";
        spice.port = chooser.spice_port().ok_or_else(|| CommandError::Internal(full.to_owned()))?.into();
    }
    if spice.tls_port == -1 || (spice.autoport && (encrypted || either)) {
        match chooser.spice_tls_port() {
            Some(port) => spice.tls_port = port.into(),
            None if spice.tls_port != -1 && !encrypted => {}
            None => {
                let message =
                    "Auto allocation of spice TLS port requested but spice TLS is disabled in qemu.conf";
                return Err(CommandError::Unsupported(message.to_owned()));
            }
        }
    }
    Ok(())
}

/// Fills in what listeners leave open; the answer is whether any needs a port.
fn choose_listeners(listens: &mut [Listen], place: &Place<'_>, screen: &str) -> bool {
    let mut needs_port = false;
    for listen in listens {
        let Listen { place: here, from_config, auto_generated } = listen;
        match here {
            ListenPlace::None => {}
            ListenPlace::Socket { socket: Some(_) } => {}
            ListenPlace::Socket { socket } => {
                *socket = Some(place.state_dir.join(format!("{screen}.sock")).display().to_string().into());
                *auto_generated = true;
            }
            ListenPlace::Address { address } => {
                needs_port = true;
                if address.is_none() {
                    *address = Some(place.vnc_listen.into());
                    *from_config = true;
                }
            }
            ListenPlace::Network { .. } => needs_port = true,
        }
    }
    needs_port
}

fn prepare_vnc(vnc: &mut Vnc, place: &Place<'_>, chooser: &mut dyn Chooser) -> Result<(), CommandError> {
    let needs_port = choose_listeners(&mut vnc.listens, place, "vnc");
    let full = |name: &str, first: u16| {
        let message = format!("Unable to find an unused port in range '{name}' ({first}-65535)");
        CommandError::Internal(message)
    };
    if needs_port && vnc.autoport {
        vnc.port = chooser.vnc_port().ok_or_else(|| full("vnc", 5900))?.into();
    }
    if needs_port && vnc.websocket == -1 {
        vnc.websocket = chooser.websocket_port().ok_or_else(|| full("vnc-ws", 5700))?.into();
        vnc.websocket_generated = true;
    }
    Ok(())
}

/// Notes the ptys that QEMU has opened: `ptys` has the id of a character device (`charserial0`) and the path.
pub fn set_pty_paths(domain: &mut Domain, ptys: &[(String, String)]) {
    let devices = &mut domain.devices;
    let serials = devices.serials.iter_mut().map(|it| (&it.info, &mut it.source));
    let parallels = devices.parallels.iter_mut().map(|it| (&it.info, &mut it.source));
    let channels = devices.channels.iter_mut().map(|it| (&it.info, &mut it.source));
    let consoles = devices.consoles.iter_mut().map(|it| (&it.info, &mut it.source));
    for (info, source) in serials.chain(parallels).chain(channels).chain(consoles) {
        let alias = info.alias.as_deref().unwrap_or_default();
        let found = ptys.iter().find(|(id, _)| id.strip_prefix("char") == Some(alias));
        if let (CharSource { backend: CharBackend::Pty(path), .. }, Some((_, found))) = (source, found) {
            *path = Some(found.as_str().into());
        }
    }
}
