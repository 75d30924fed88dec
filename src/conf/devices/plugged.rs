//! Devices that come and go while a guest runs, whatever their kind: reading one alone, telling new ones from
//! old ones, finding the one that a client means.

use super::{Address, ChannelTarget, DeviceInfo, Devices, Disk};
use crate::conf::xml::{Document, Form, Part};
use crate::conf::{ConfError, Result};

macro_rules! lists {
    ($($list:ident = $kind:literal),*) => {
        /// Element names of the kinds that are understood as devices of their own.
        const KINDS: &[&str] = &[$($kind),*];

        impl Devices {
            /// Takes out the devices that fit.
            pub fn take(&mut self, mut fits: impl FnMut(&DeviceInfo) -> bool) -> Self {
                let mut taken = Self::default();
                $(
                    let (fitting, rest) =
                        std::mem::take(&mut self.$list).into_iter().partition(|device| fits(&device.info));
                    (taken.$list, self.$list) = (fitting, rest);
                )*
                taken
            }

            /// The common part of each device, with the name of its element.
            pub fn infos(&self) -> impl Iterator<Item = (&'static str, &DeviceInfo)> {
                std::iter::empty()$(.chain(self.$list.iter().map(|device| ($kind, &device.info))))*
            }

            /// Puts further devices behind those of their kind.
            pub fn append(&mut self, other: Self) {
                $(self.$list.extend(other.$list);)*
                self.leases.extend(other.leases);
            }
        }
    };
}

lists!(
    disks = "disk",
    controllers = "controller",
    interfaces = "interface",
    serials = "serial",
    parallels = "parallel",
    consoles = "console",
    channels = "channel",
    filesystems = "filesystem",
    smartcards = "smartcard",
    inputs = "input",
    tpms = "tpm",
    sounds = "sound",
    videos = "video",
    hostdevs = "hostdev",
    redirdevs = "redirdev",
    hubs = "hub",
    watchdogs = "watchdog",
    memballoons = "memballoon",
    rngs = "rng",
    panics = "panic",
    shmems = "shmem",
    memories = "memory",
    iommus = "iommu",
    vsocks = "vsock"
);

/// The one kind that is no device: a promise on a lock that others keep, too.
const LEASE: &str = "lease";

/// Kinds that are there from the beginning or not at all.
const FIXED: &[&str] = &["graphics", "audio", "nvram", "crypto", "pstore"];

/// Further kinds that no definition gets or loses on their own.
const FIXED_IN_DEFINITIONS: &[&str] = &["video", "hub", "smartcard", "memballoon", "tpm", "panic"];

/// Further kinds that no running guest gets or loses.
const FIXED_IN_GUESTS: &[&str] =
    &["video", "hub", "smartcard", "memballoon", "tpm", "panic", "sound", "iommu"];

pub fn is_fixed_in_definitions(kind: &str) -> bool {
    FIXED.contains(&kind) || FIXED_IN_DEFINITIONS.contains(&kind)
}

pub fn is_fixed_in_guests(kind: &str) -> bool {
    FIXED.contains(&kind) || FIXED_IN_GUESTS.contains(&kind)
}

impl Devices {
    /// Reads the text of one device; the name of its element comes with it.
    pub fn read_one(text: &str, form: Form) -> Result<(&'static str, Self)> {
        let name = Document::parse(text, form)?.root().name().to_owned();
        let Some(kind) = KINDS.iter().chain(FIXED).chain([&LEASE]).copied().find(|kind| *kind == name) else {
            return Err(unknown(&name));
        };
        let element = text.get(start_of_root(text)..).unwrap_or_default();
        let document = format!("<devices>{element}</devices>");
        let document = Document::parse(&document, form)?;
        Ok((kind, Self::read(document.root())?))
    }

    /// Takes out the devices that a client means by those it describes: each kind has something that tells its
    /// devices apart.
    pub fn take_matching(&mut self, described: &Self) -> Self {
        let mut taken = Self::default();
        for wanted in &described.disks {
            taken.disks.extend(extract(&mut self.disks, |it| it.target.dev == wanted.target.dev));
        }
        for wanted in &described.interfaces {
            let fits = |it: &super::Interface| {
                let mac = wanted.mac.address;
                mac.is_none_or(|mac| it.mac.address == Some(mac)) && is_at(&it.info, &wanted.info)
            };
            taken.interfaces.extend(extract(&mut self.interfaces, fits));
        }
        for wanted in &described.controllers {
            let fits =
                |it: &super::Controller| it.kind.bus() == wanted.kind.bus() && it.index() == wanted.index();
            taken.controllers.extend(extract(&mut self.controllers, fits));
        }
        for wanted in &described.inputs {
            let fits = |it: &super::Input| {
                it.kind == wanted.kind
                    && wanted.bus.is_none_or(|bus| it.bus == Some(bus))
                    && is_at(&it.info, &wanted.info)
            };
            taken.inputs.extend(extract(&mut self.inputs, fits));
        }
        for wanted in &described.rngs {
            let fits = |it: &super::Rng| {
                it.backend == wanted.backend && it.model == wanted.model && is_at(&it.info, &wanted.info)
            };
            taken.rngs.extend(extract(&mut self.rngs, fits));
        }
        for wanted in &described.watchdogs {
            let fits = |it: &super::Watchdog| it.model == wanted.model && it.action == wanted.action;
            taken.watchdogs.extend(extract(&mut self.watchdogs, fits));
        }
        for wanted in &described.filesystems {
            let fits = |it: &super::Filesystem| it.target == wanted.target && is_at(&it.info, &wanted.info);
            taken.filesystems.extend(extract(&mut self.filesystems, fits));
        }
        for wanted in &described.sounds {
            let fits = |it: &super::Sound| it.model == wanted.model && is_at(&it.info, &wanted.info);
            taken.sounds.extend(extract(&mut self.sounds, fits));
        }
        for wanted in &described.redirdevs {
            let fits = |it: &super::Redirdev| it.source == wanted.source && is_at(&it.info, &wanted.info);
            taken.redirdevs.extend(extract(&mut self.redirdevs, fits));
        }
        for wanted in &described.iommus {
            taken.iommus.extend(extract(&mut self.iommus, |it| it.model == wanted.model));
        }
        for wanted in &described.vsocks {
            let fits = |it: &super::Vsock| it.model == wanted.model && is_at(&it.info, &wanted.info);
            taken.vsocks.extend(extract(&mut self.vsocks, fits));
        }
        for wanted in &described.channels {
            let fits = |it: &super::Channel| {
                channel_name(&it.target) == channel_name(&wanted.target) && is_at(&it.info, &wanted.info)
            };
            taken.channels.extend(extract(&mut self.channels, fits));
        }
        for wanted in &described.serials {
            let port = wanted.target.port;
            let fits = |it: &super::Serial| {
                port.is_none_or(|port| it.target.port == Some(port)) && is_at(&it.info, &wanted.info)
            };
            taken.serials.extend(extract(&mut self.serials, fits));
        }
        self.take_of_host(described, &mut taken);
        taken
    }

    /// Devices and memory of the host, and its locks.
    fn take_of_host(&mut self, described: &Self, taken: &mut Self) {
        for wanted in &described.hostdevs {
            let fits = |it: &super::Hostdev| wanted.source.is_same(&it.source);
            taken.hostdevs.extend(extract_first(&mut self.hostdevs, fits));
        }
        for wanted in &described.shmems {
            let fits = |it: &super::Shmem| wanted.describes(it) && is_at(&it.info, &wanted.info);
            taken.shmems.extend(extract_first(&mut self.shmems, fits));
        }
        for wanted in &described.memories {
            let fits = |it: &super::MemoryDevice| wanted.describes(it) && is_at(&it.info, &wanted.info);
            taken.memories.extend(extract_first(&mut self.memories, fits));
        }
        for wanted in &described.leases {
            let names = |lease: &super::Raw| {
                ["lockspace", "key"].map(|name| lease.child(name)?.text().map(str::to_owned))
            };
            taken.leases.extend(extract_first(&mut self.leases, |it| names(it) == names(wanted)));
        }
    }
}

fn extract<T>(list: &mut Vec<T>, fits: impl Fn(&T) -> bool) -> Vec<T> {
    let (fitting, rest) = std::mem::take(list).into_iter().partition(fits);
    *list = rest;
    fitting
}

/// As [`extract`], where others may look the same.
fn extract_first<T>(list: &mut Vec<T>, fits: impl Fn(&T) -> bool) -> Option<T> {
    let at = list.iter().position(fits)?;
    Some(list.remove(at))
}

fn channel_name(target: &ChannelTarget) -> Option<&str> {
    match target {
        ChannelTarget::Virtio { name, .. } | ChannelTarget::Xen { name, .. } => name.as_deref(),
        ChannelTarget::Guestfwd { address, .. } => Some(address),
    }
}

/// Whether a device is where a description says, if it says.
fn is_at(info: &DeviceInfo, described: &DeviceInfo) -> bool {
    let address = |address: &Address| match address {
        Address::Pci(address) if address.is_empty() => true,
        address => info.address.as_ref() == Some(address),
    };
    described.address.as_ref().is_none_or(address)
        && described.alias.as_ref().is_none_or(|alias| info.alias.as_ref() == Some(alias))
}

fn unknown(name: &str) -> ConfError {
    ConfError::unsupported(format!("unknown device type '{name}'"))
}

/// Where the element begins, behind declarations and comments.
fn start_of_root(text: &str) -> usize {
    let mut at = 0;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let blank = rest.len() - rest.trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).len();
        at += blank;
        let rest = rest.get(blank..).unwrap_or_default();
        let end = if rest.starts_with("<?") {
            rest.find("?>").map(|end| end + 2)
        } else if rest.starts_with("<!--") {
            rest.find("-->").map(|end| end + 3)
        } else {
            None
        };
        match end {
            Some(end) => at += end,
            None => return at,
        }
    }
}

/// What keeps a device from being plugged into a running guest, in libvirt's words.
pub fn refuse_plugging(devices: &Devices) -> Result<(), String> {
    use super::{ConsoleType, ControllerType, DiskBus, DiskDevice, InputBus, MemoryModel, WatchdogModel};
    let disk = |disk: &Disk| match (disk.device, disk.target.bus) {
        (DiskDevice::Floppy, _) => Err("floppy device hotplug isn't supported".to_owned()),
        (DiskDevice::Cdrom, Some(DiskBus::Virtio)) => {
            Err("cdrom device with virtio bus isn't supported".to_owned())
        }
        (_, Some(DiskBus::Virtio | DiskBus::Scsi | DiskBus::Usb)) => Ok(()),
        (_, bus) => {
            let bus = bus.map_or("none", |bus| bus.as_str());
            Err(format!("disk bus '{bus}' cannot be hotplugged."))
        }
    };
    devices.disks.iter().try_for_each(disk)?;
    for controller in &devices.controllers {
        if !matches!(controller.kind.bus(), ControllerType::Scsi | ControllerType::VirtioSerial) {
            return Err(format!("'{}' controller cannot be hot plugged.", controller.kind.bus()));
        }
    }
    if let Some(watchdog) = devices.watchdogs.iter().find(|it| it.model != WatchdogModel::I6300esb) {
        return Err(format!("hotplug of watchdog model '{}' is not supported", watchdog.model.as_str()));
    }
    let serial = Some(ConsoleType::Serial);
    if devices.consoles.iter().any(|console| console.target.kind == serial) {
        return Err("attaching serial console is not supported".to_owned());
    }
    for input in &devices.inputs {
        if !matches!(input.bus, Some(InputBus::Usb | InputBus::Virtio)) {
            let bus = input.bus.map_or("default", InputBus::as_str);
            return Err(format!("input device on bus '{bus}' cannot be hot plugged."));
        }
    }
    if devices.filesystems.iter().any(|filesystem| !filesystem.is_virtiofs()) {
        return Err("only virtiofs filesystems can be hotplugged".to_owned());
    }
    if let Some(memory) = devices.memories.iter().find(|it| it.model == MemoryModel::SgxEpc) {
        return Err(format!("hotplug is not supported for the {} device", memory.model));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_device_is_read_whatever_stands_before_it() {
        for text in ["<rng model='virtio'/>", "<?xml version='1.0'?>\n<!-- a > b --> <rng model='virtio'/>"] {
            let text = text.replace("/>", "><backend model='builtin'/></rng>");
            let (kind, devices) = Devices::read_one(&text, Form::INACTIVE).unwrap();
            assert_eq!((kind, devices.rngs.len()), ("rng", 1), "{text}");
        }
        let error = Devices::read_one("<toaster/>", Form::INACTIVE).unwrap_err();
        assert_eq!(error.message, "unknown device type 'toaster'");
    }
}
