//! Every device but disks.

use std::collections::BTreeSet;

use super::{by_qemu, hostdevs, interfaces, iothreads, memory, screens, unsupported};
use crate::conf::devices::{
    Address, ChannelTarget, CharBackend, CharSource, Controller, ControllerKind, DeviceInfo, Devices,
    Graphics, Input, InputBus, InputKind, InputModel, Iommu, IommuDriver, IommuModel, PciModel, Reconnect,
    RngBackend, Serial, SerialModel, SerialType, SourceMode, TcpProtocol, VideoKind, VirtioOptions, Watchdog,
    WatchdogModel,
};
use crate::conf::domain::Domain;
use crate::conf::domain::defaults::{Facts, Has};
use crate::conf::xml::{OnOff, YesNo};
use crate::conf::{ConfError, Result};

pub(super) fn check_all(domain: &Domain, facts: &Facts<'_>) -> Result<()> {
    let devices = &domain.devices;
    for interface in &devices.interfaces {
        interfaces::check(domain, interface)?;
    }
    check_videos(devices, facts)?;
    for controller in &devices.controllers {
        check_controller(domain, controller)?;
    }
    for serial in &devices.serials {
        check_char(&serial.source, PathChooser::Nobody)?;
        check_serial(domain, serial)?;
    }
    for parallel in &devices.parallels {
        check_char(&parallel.source, PathChooser::Nobody)?;
    }
    for channel in &devices.channels {
        let chooser = match channel.target {
            ChannelTarget::Virtio { .. } | ChannelTarget::Xen { .. } => PathChooser::Daemon,
            ChannelTarget::Guestfwd { .. } => PathChooser::Nobody,
        };
        check_char(&channel.source, chooser)?;
    }
    for console in &devices.consoles {
        check_char(&console.source, PathChooser::Nobody)?;
    }
    for rng in &devices.rngs {
        if let RngBackend::Egd(source) = &rng.backend {
            check_char(source, PathChooser::Nobody)?;
        }
    }
    for input in &devices.inputs {
        check_input(domain, input, facts)?;
    }
    for watchdog in &devices.watchdogs {
        check_watchdog(domain, watchdog)?;
    }
    for graphics in &devices.graphics {
        screens::check_kind(graphics, facts)?;
        check_graphics(graphics)?;
        check_headless(devices, graphics)?;
    }
    for hostdev in &devices.hostdevs {
        hostdevs::check(domain, hostdev, facts)?;
    }
    for shmem in &devices.shmems {
        hostdevs::check_shmem(shmem, facts)?;
    }
    for device in &devices.memories {
        memory::check_device(domain, device, facts)?;
    }
    for pstore in &devices.pstores {
        if !facts.has.contains(Has::ACPI_ERST) {
            return by_qemu("acpi-erst backend of pstore device is not supported");
        }
        if !matches!(pstore.info.address, None | Some(Address::Pci(_))) {
            return by_qemu("ACPI ERST device must reside on a PCI bus");
        }
    }
    for iommu in &devices.iommus {
        check_iommu(domain, iommu)?;
    }
    Ok(())
}

/// Options of virtio drivers on a device that has none.
pub(super) fn refuse_virtio_options(options: &VirtioOptions) -> Result<()> {
    let given = [
        ("iommu", options.iommu),
        ("ats", options.ats),
        ("packed", options.packed),
        ("page_per_vq", options.page_per_vq),
    ];
    match given.iter().find(|(_, value)| value.is_some()) {
        Some((name, _)) => unsupported(format!("{name} driver option is only supported for virtio devices")),
        None => Ok(()),
    }
}

fn check_videos(devices: &Devices, facts: &Facts<'_>) -> Result<()> {
    for (at, video) in devices.videos.iter().enumerate() {
        let kind = video.model.kind;
        if kind == VideoKind::None && devices.videos.len() > 1 {
            return unsupported("a 'none' video type must be the only video device defined for the domain");
        }
        if kind == VideoKind::Ramfb && video.info.address.is_some() {
            return unsupported("address not supported for video type ramfb");
        }
        let needed = match kind {
            VideoKind::None => continue,
            VideoKind::Vga => Has::VGA,
            VideoKind::Cirrus => Has::CIRRUS,
            VideoKind::Vmvga => Has::VMVGA,
            VideoKind::Qxl => Has::QXL,
            VideoKind::Virtio => Has::VIRTIO_GPU,
            VideoKind::Bochs => Has::BOCHS,
            VideoKind::Ramfb => Has::RAMFB,
            VideoKind::Default | VideoKind::Xen | VideoKind::Vbox | VideoKind::Parallels | VideoKind::Gop => {
                Has::empty()
            }
        };
        if needed.is_empty() || !facts.has.contains(needed) {
            return by_qemu(format!("domain configuration does not support video model '{kind}'"));
        }
        if at > 0 && video.model.primary == YesNo::Yes {
            return unsupported("Only one primary video device is supported");
        }
        if at > 0 && !matches!(kind, VideoKind::Qxl | VideoKind::Virtio) {
            return by_qemu(format!("video type '{kind}' is only valid as primary video device"));
        }
    }
    Ok(())
}

fn check_controller(domain: &Domain, controller: &Controller) -> Result<()> {
    match &controller.kind {
        ControllerKind::Ide(_) => {
            let built_in = domain.is_i440fx() || domain.machine() == "isapc";
            if built_in && controller.index() != 0 {
                return by_qemu("Only a single IDE controller is supported for this machine type");
            }
            if !built_in {
                return by_qemu("IDE controllers are unsupported for this QEMU binary or machine type");
            }
        }
        ControllerKind::Pci(options) => {
            let is_root = matches!(options.model, Some(PciModel::PciRoot | PciModel::PcieRoot));
            if is_root && controller.info.address.is_some() {
                return unsupported("pci-root and pcie-root controllers should not have an address");
            }
            let target = &options.target;
            let ranges = [
                ("target index", target.index, 0, 30),
                ("chassisNr", target.chassis_nr, 1, 255),
                ("chassis", target.chassis, 0, 255),
                ("port", target.port, 0, 255),
                ("busNr", target.bus_nr, 1, 254),
            ];
            for (name, value, low, high) in ranges {
                if let Some(value) = value.filter(|value| !(low..=high).contains(value)) {
                    return unsupported(format!(
                        "PCI controller {name} '{value}' out of range - must be {low}-{high}"
                    ));
                }
            }
            if target.node.is_some() && controller.index() == 0 {
                return unsupported("The PCI controller with index=0 can't be associated with a NUMA node");
            }
        }
        ControllerKind::Scsi(model) => iothreads::check_controller(domain, *model, &controller.driver)?,
        _ => {}
    }
    Ok(())
}

/// Who may choose the path of a socket that has none.
#[derive(Clone, Copy, PartialEq)]
enum PathChooser {
    Daemon,
    Nobody,
}

fn check_char(source: &CharSource, chooser: PathChooser) -> Result<()> {
    if let CharBackend::Unix(socket) = &source.backend {
        if socket.path.is_none() && chooser == PathChooser::Nobody {
            return Err(ConfError::internal("Missing source path attribute for char device"));
        }
        if socket.mode == SourceMode::Bind
            && socket.reconnect.is_some_and(|reconnect| reconnect.enabled.is_some())
        {
            return Err(ConfError::internal("chardev reconnect is possible only for connect mode"));
        }
        return check_reconnect(socket.reconnect);
    }
    if let CharBackend::Tcp(tcp, protocol) = &source.backend {
        source.validate()?;
        if matches!(protocol, TcpProtocol::Telnets | TcpProtocol::Tls) {
            return by_qemu(format!("tcp chardev protocol '{protocol}' not supported"));
        }
        return check_reconnect(tcp.reconnect);
    }
    source.validate()
}

fn check_reconnect(reconnect: Option<Reconnect>) -> Result<()> {
    if reconnect.is_some_and(|it| it.enabled == Some(YesNo::Yes) && it.timeout_s == 0) {
        let message = "chardev reconnect source timeout cannot be '0'";
        return Err(ConfError::invalid_arg(message).by_qemu_driver());
    }
    Ok(())
}

fn check_serial(domain: &Domain, serial: &Serial) -> Result<()> {
    let target = &serial.target;
    let Some(kind) = target.kind else { return Ok(()) };
    let expected = match kind {
        SerialType::Isa | SerialType::IsaDebug => Some("isa"),
        SerialType::Usb => Some("usb"),
        SerialType::Pci => Some("pci"),
        SerialType::SpaprVio => Some("spapr-vio"),
        SerialType::System | SerialType::Sclp => None,
    };
    match (expected, serial.info.address.as_ref().map(Address::tag)) {
        (Some(expected), Some(found)) if found != expected => {
            return by_qemu(format!("Target type '{kind}' requires address type '{expected}'"));
        }
        (None, Some(_)) => {
            return by_qemu(format!("Target type '{kind}' cannot have an associated address"));
        }
        _ => {}
    }
    let Some(model) = target.model else { return Ok(()) };
    let belongs_to = match model {
        SerialModel::IsaSerial => SerialType::Isa,
        SerialModel::UsbSerial => SerialType::Usb,
        SerialModel::PciSerial => SerialType::Pci,
        SerialModel::SpaprVty => SerialType::SpaprVio,
        SerialModel::Pl011 | SerialModel::Uart16550a => SerialType::System,
        SerialModel::Sclpconsole | SerialModel::Sclplmconsole => SerialType::Sclp,
        SerialModel::IsaDebugcon => SerialType::IsaDebug,
    };
    if belongs_to != kind {
        return by_qemu(format!("Target model '{model}' requires target type '{belongs_to}'"));
    }
    let elsewhere = matches!(kind, SerialType::SpaprVio | SerialType::Sclp)
        || (kind == SerialType::System && domain.arch().is_x86());
    if elsewhere {
        return by_qemu(format!(
            "Serial device with target type '{kind}' and target model '{model}' not compatible with guest \
             architecture or machine type"
        ));
    }
    Ok(())
}

fn check_input(domain: &Domain, input: &Input, facts: &Facts<'_>) -> Result<()> {
    let kind = input.kind;
    let bus = input.bus.unwrap_or(InputBus::None);
    if bus == InputBus::Ps2 && !matches!(kind, InputKind::Mouse | InputKind::Keyboard) {
        return Err(ConfError::internal(format!("ps2 bus does not support {kind} input device")));
    }
    if matches!(bus, InputBus::Xen | InputBus::Parallels) {
        return Err(ConfError::internal(format!("unsupported input bus {bus}")));
    }
    match kind {
        InputKind::Passthrough if bus != InputBus::Virtio => {
            return unsupported("only bus 'virtio' is supported for 'passthrough' input devices");
        }
        InputKind::Evdev if bus != InputBus::None => {
            return unsupported("input evdev doesn't support bus element");
        }
        _ => {}
    }
    if let Some(model) = input.model.filter(|_| bus != InputBus::Virtio) {
        return unsupported(format!("only bus 'virtio' is supported for input model '{model}'"));
    }
    if matches!(input.model, Some(InputModel::VirtioTransitional | InputModel::VirtioNonTransitional)) {
        return by_qemu(format!("virtio (non-)transitional models are not supported for input type={kind}"));
    }
    let ps2_off = domain.features.ps2.is_some_and(|ps2| ps2.state == OnOff::Off);
    if bus == InputBus::Ps2 && ps2_off {
        return unsupported("ps2 bus inputs require the ps2 feature not to be disabled");
    }
    let has_ps2 = domain.is_i440fx() || domain.is_q35() || domain.machine() == "isapc";
    if bus == InputBus::Ps2 && !(has_ps2 && facts.has.contains(Has::I8042)) {
        return by_qemu("ps2 is not supported by this QEMU binary");
    }
    Ok(())
}

fn check_watchdog(domain: &Domain, watchdog: &Watchdog) -> Result<()> {
    let model = watchdog.model;
    if domain.devices.watchdogs.first().is_some_and(|first| first.action != watchdog.action) {
        return by_qemu("watchdogs with different actions are not supported with this QEMU binary");
    }
    let address = &watchdog.info.address;
    match model {
        WatchdogModel::I6300esb if !matches!(address, None | Some(Address::Pci(_))) => {
            by_qemu(format!("{model} model of watchdog can go only on PCI bus"))
        }
        WatchdogModel::Ib700 if !domain.is_i440fx() => {
            by_qemu(format!("{model} model of watchdog cannot be used with this machine type"))
        }
        WatchdogModel::Ib700 if address.is_some() => {
            by_qemu(format!("{model} model of watchdog does not support configuring the address"))
        }
        WatchdogModel::Diag288 => {
            by_qemu(format!("{model} model of watchdog is allowed for s390 and s390x only"))
        }
        WatchdogModel::Itco if !domain.is_q35() => {
            by_qemu(format!("{model} model of watchdog is only part of q35 machine"))
        }
        _ => Ok(()),
    }
}

fn check_graphics(graphics: &Graphics) -> Result<()> {
    let Graphics::Vnc(vnc) = graphics else { return Ok(()) };
    if let Some(auth) = vnc.auth.as_deref()
        && auth.passwd.len() > 8
    {
        let length = auth.passwd.len();
        return by_qemu(format!("VNC password is {length} characters long, only 8 permitted"));
    }
    Ok(())
}

/// Screens beside one that only draws.
fn check_headless(devices: &Devices, graphics: &Graphics) -> Result<()> {
    if !devices.graphics.iter().any(|other| matches!(other, Graphics::EglHeadless(_))) {
        return Ok(());
    }
    match graphics {
        Graphics::Spice(spice)
            if spice.options.gl.as_ref().is_some_and(|gl| gl.enable == Some(YesNo::Yes)) =>
        {
            by_qemu("multiple OpenGL displays are not supported by QEMU")
        }
        Graphics::EglHeadless(_) | Graphics::Vnc(_) | Graphics::Spice(_) => Ok(()),
        _ => by_qemu(
            "graphics type 'egl-headless' is only supported with one of: 'vnc', 'spice' graphics types",
        ),
    }
}

fn check_iommu(domain: &Domain, iommu: &Iommu) -> Result<()> {
    let model = iommu.model;
    let device = format!("IOMMU device: '{model}'");
    if model != IommuModel::Intel && iommu.driver != IommuDriver::default() {
        return Err(ConfError::xml(format!("iommu model '{model}' doesn't support additional attributes")));
    }
    let acpi = domain.features.acpi;
    match model {
        IommuModel::Intel if !domain.is_q35() => {
            by_qemu(format!("{device} is only supported with Q35 machines"))
        }
        IommuModel::Smmuv3 => by_qemu(format!("{device} is only supported with ARM Virt machines")),
        IommuModel::Virtio if !domain.is_q35() => {
            by_qemu(format!("{device} is only supported with Q35 and ARM Virt machines"))
        }
        IommuModel::Virtio if !acpi => by_qemu(format!("{device} requires ACPI")),
        IommuModel::Virtio if !matches!(iommu.info.address, None | Some(Address::Pci(_))) => {
            by_qemu(format!("{device} needs a PCI address"))
        }
        _ => Ok(()),
    }
}

/// Names that users gave are given once. The first serial port's counts as its console's.
pub(super) fn check_aliases(devices: &Devices) -> Result<()> {
    let mut seen = BTreeSet::new();
    let mut check = |info: &DeviceInfo| match info.alias.as_deref() {
        Some(alias) if alias.starts_with("ua-") && !seen.insert(alias.to_owned()) => {
            unsupported(format!("non unique alias detected: {alias}"))
        }
        _ => Ok(()),
    };
    devices.disks.iter().try_for_each(|device| check(&device.info))?;
    devices.interfaces.iter().try_for_each(|device| check(&device.info))?;
    devices.sounds.iter().try_for_each(|device| check(&device.info))?;
    devices.videos.iter().try_for_each(|device| check(&device.info))?;
    devices.controllers.iter().try_for_each(|device| check(&device.info))?;
    let paired = usize::from(!devices.consoles.is_empty());
    devices.serials.iter().skip(paired).try_for_each(|device| check(&device.info))?;
    devices.parallels.iter().try_for_each(|device| check(&device.info))?;
    devices.channels.iter().try_for_each(|device| check(&device.info))?;
    devices.inputs.iter().try_for_each(|device| check(&device.info))?;
    devices.watchdogs.iter().try_for_each(|device| check(&device.info))?;
    devices.memballoons.iter().try_for_each(|device| check(&device.info))?;
    devices.rngs.iter().try_for_each(|device| check(&device.info))?;
    devices.filesystems.iter().try_for_each(|device| check(&device.info))?;
    devices.redirdevs.iter().try_for_each(|device| check(&device.info))?;
    devices.smartcards.iter().try_for_each(|device| check(&device.info))?;
    devices.tpms.iter().try_for_each(|device| check(&device.info))?;
    devices.vsocks.iter().try_for_each(|device| check(&device.info))?;
    devices.iommus.iter().try_for_each(|device| check(&device.info))?;
    devices.hubs.iter().try_for_each(|device| check(&device.info))?;
    devices.panics.iter().try_for_each(|device| check(&device.info))
}
