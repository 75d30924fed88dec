//! Devices of the host that guests take: found in sysfs, which is read and never written.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::conf::devices::{
    Devices, HostdevSource, InterfaceSource, Mdev, PciAddress, PciHostdev, ScsiPlace, StartupPolicy,
    UsbHostdev,
};
use crate::conf::xml::YesNo;

/// Why a guest cannot have a device. The texts are libvirt's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HostDeviceError {
    /// `VIR_ERR_OPERATION_INVALID`
    #[error("{0}")]
    Invalid(String),
    /// `VIR_ERR_CONFIG_UNSUPPORTED`
    #[error("{0}")]
    Unsupported(String),
    /// `VIR_ERR_OPERATION_FAILED`
    #[error("{0}")]
    Failed(String),
    /// `VIR_ERR_INTERNAL_ERROR`
    #[error("{0}")]
    Internal(String),
}

type Result<T> = std::result::Result<T, HostDeviceError>;

/// Finds the host's devices that a guest shall have, as it starts.
pub fn resolve(devices: &mut Devices) -> Result<()> {
    resolve_in(devices, Path::new("/sys"))
}

/// Refuses devices that another guest has. Found ones only: [`resolve`] comes before.
pub fn refuse_taken<'a>(
    devices: &Devices,
    others: impl IntoIterator<Item = (&'a str, &'a Devices)>,
) -> Result<()> {
    for (name, other) in others {
        for (source, shareable) in of_host(devices) {
            let mut same = of_host(other).filter(|(theirs, _)| theirs.is_same(source));
            if let Some((_, theirs)) = same.next()
                && let Some(sentence) = taken(source, name, (shareable, theirs))
            {
                return Err(HostDeviceError::Invalid(sentence));
            }
        }
    }
    Ok(())
}

/// A file through which a QEMU uses a device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    /// Devices of one group have it in common.
    pub is_group: bool,
}

/// The files of a guest's devices of the host.
pub fn nodes(devices: &Devices) -> Vec<Node> {
    of_host(devices).filter_map(|(source, _)| node(source, Path::new("/sys"))).collect()
}

/// The file of the group that a PCI device is in.
pub fn group_of(address: &PciAddress) -> Option<PathBuf> {
    group(&Path::new("/sys/bus/pci/devices").join(name_of(address)))
}

fn group(device: &Path) -> Option<PathBuf> {
    let group = fs::read_link(device.join("iommu_group")).ok()?;
    Some(Path::new("/dev/vfio").join(group.file_name()?))
}

fn node(source: &HostdevSource, sys: &Path) -> Option<Node> {
    let file = |path: PathBuf| Node { path, is_group: false };
    let of_group = |path: PathBuf| Node { path, is_group: true };
    match source {
        HostdevSource::Pci(pci) => {
            group(&sys.join("bus/pci/devices").join(name_of(&pci.address))).map(of_group)
        }
        HostdevSource::Mdev(mdev) => {
            group(&sys.join("bus/mdev/devices").join(mdev.uuid.to_string())).map(of_group)
        }
        HostdevSource::Usb(usb) if usb.missing => None,
        HostdevSource::Usb(usb) => {
            Some(file(format!("/dev/bus/usb/{:03}/{:03}", usb.bus, usb.device).into()))
        }
        HostdevSource::Scsi(scsi) => scsi_generic(&scsi.place, sys).ok().flatten().map(file),
        HostdevSource::VhostScsi(_) => Some(file("/dev/vhost-scsi".into())),
        HostdevSource::Capabilities { .. } => None,
    }
}

/// The host's devices among a guest's, and whether it shares them.
fn of_host(devices: &Devices) -> impl Iterator<Item = (&HostdevSource, bool)> {
    let cards = devices.interfaces.iter().filter_map(|card| match &card.source {
        InterfaceSource::Hostdev(source) => Some((&**source, false)),
        _ => None,
    });
    devices.hostdevs.iter().map(|hostdev| (&hostdev.source, hostdev.shareable)).chain(cards)
}

fn taken(source: &HostdevSource, by: &str, (ours, theirs): (bool, bool)) -> Option<String> {
    let user = format!("is in use by driver QEMU, domain {by}");
    match source {
        HostdevSource::Pci(pci) => Some(format!("PCI device {} {user}", name_of(&pci.address))),
        HostdevSource::Usb(usb) => Some(format!("USB device {:03o}:{:03o} {user}", usb.bus, usb.device)),
        HostdevSource::Mdev(mdev) => Some(format!("mediated device {} {user}", mdev.uuid)),
        HostdevSource::Scsi(scsi) => {
            let ScsiPlace::Host { adapter, bus, target, unit, .. } = &scsi.place else { return None };
            let host = adapter.strip_prefix("scsi_host").unwrap_or(adapter);
            let how = if theirs { "shareable" } else { "non-shareable" };
            (!ours || !theirs).then(|| {
                let name = format!("{host}:{bus}:{target}:{unit}");
                format!("SCSI device {name} is already in use by other domain(s) as '{how}'")
            })
        }
        HostdevSource::VhostScsi(_) | HostdevSource::Capabilities { .. } => None,
    }
}

fn resolve_in(devices: &mut Devices, sys: &Path) -> Result<()> {
    for hostdev in &mut devices.hostdevs {
        let managed = hostdev.managed;
        resolve_one(&mut hostdev.source, managed, sys)?;
    }
    for card in &mut devices.interfaces {
        let managed = card.managed.unwrap_or(YesNo::No);
        if let InterfaceSource::Hostdev(source) = &mut card.source {
            resolve_one(source, managed, sys)?;
        }
    }
    Ok(())
}

fn resolve_one(source: &mut HostdevSource, managed: YesNo, sys: &Path) -> Result<()> {
    match source {
        HostdevSource::Pci(pci) => check_pci(pci, managed, sys),
        HostdevSource::Usb(usb) => find_usb(usb, sys),
        HostdevSource::Mdev(mdev) => check_mdev(mdev, sys),
        HostdevSource::Scsi(scsi) => find_scsi(&mut scsi.place, sys),
        HostdevSource::VhostScsi(_) | HostdevSource::Capabilities { .. } => Ok(()),
    }
}

fn name_of(address: &PciAddress) -> String {
    let PciAddress { domain, bus, slot, function, .. } = address;
    format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}")
}

/// Only devices that somebody else has taken from the host: nothing here unbinds or resets one.
fn check_pci(pci: &PciHostdev, managed: YesNo, sys: &Path) -> Result<()> {
    let name = name_of(&pci.address);
    let device = sys.join("bus/pci/devices").join(&name);
    if !device.exists() {
        let sentence = format!("Device {name} not found: could not access {}/config", device.display());
        return Err(HostDeviceError::Internal(sentence));
    }
    if managed == YesNo::Yes {
        return Err(HostDeviceError::Unsupported(format!(
            "PCI device {name} cannot be detached from the host: bind it to vfio-pci and use managed='no'"
        )));
    }
    let driver = fs::read_link(device.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match driver {
        Some("vfio-pci") => Ok(()),
        _ => Err(HostDeviceError::Invalid(format!(
            "Unmanaged PCI device {name} must be manually detached from the host"
        ))),
    }
}

fn check_mdev(mdev: &Mdev, sys: &Path) -> Result<()> {
    let uuid = mdev.uuid.to_string();
    match sys.join("bus/mdev/devices").join(&uuid).exists() {
        true => Ok(()),
        false => Err(HostDeviceError::Failed(format!("mediated device '{uuid}' not found"))),
    }
}

fn number(path: PathBuf, radix: u32) -> Option<u32> {
    let text = fs::read_to_string(path).ok()?;
    u32::from_str_radix(text.trim(), radix).ok()
}

/// Vendor, product, bus and number of every USB device.
fn usb_devices(sys: &Path) -> Vec<(u32, u32, u32, u32)> {
    let Ok(entries) = fs::read_dir(sys.join("bus/usb/devices")) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let of = |name: &str, radix| number(path.join(name), radix);
            Some((of("idVendor", 16)?, of("idProduct", 16)?, of("busnum", 10)?, of("devnum", 10)?))
        })
        .collect();
    found.sort_unstable();
    found
}

fn find_usb(usb: &mut UsbHostdev, sys: &Path) -> Result<()> {
    let all = usb_devices(sys);
    let has_place = usb.bus != 0 || usb.device != 0;
    let fits = |(vendor, product, bus, device): &&(u32, u32, u32, u32)| {
        usb.ids.is_none_or(|ids| ids == (*vendor, *product))
            && (!has_place || (usb.bus, usb.device) == (*bus, *device))
    };
    let mut fitting = all.iter().filter(fits);
    let found = fitting.next().copied();
    let others = fitting.count();
    let (vendor, product) = usb.ids.unwrap_or_default();
    match found {
        Some(_) if others > 0 && !has_place => Err(HostDeviceError::Failed(format!(
            "Multiple USB devices for {vendor:x}:{product:x}, use <address> to specify one"
        ))),
        Some((_, _, bus, device)) => {
            usb.auto_address = !has_place;
            (usb.bus, usb.device) = (bus, device);
            Ok(())
        }
        None if usb.startup_policy == Some(StartupPolicy::Optional) => {
            usb.missing = true;
            Ok(())
        }
        None if has_place && usb.ids.is_none() => {
            let (bus, device) = (usb.bus, usb.device);
            Err(HostDeviceError::Internal(format!("Did not find USB device bus:{bus} device:{device}")))
        }
        None => Err(HostDeviceError::Internal(format!("Did not find USB device {vendor:04x}:{product:04x}"))),
    }
}

fn find_scsi(place: &mut ScsiPlace, sys: &Path) -> Result<()> {
    let found = scsi_generic(place, sys)?;
    if let ScsiPlace::Host { path, .. } = place {
        *path = found.map(|path| path.display().to_string().into());
    }
    Ok(())
}

/// The file of a SCSI device; none where it is on the network.
fn scsi_generic(place: &ScsiPlace, sys: &Path) -> Result<Option<PathBuf>> {
    let ScsiPlace::Host { adapter, bus, target, unit, .. } = place else { return Ok(None) };
    let Some(host) = adapter.strip_prefix("scsi_host").and_then(|number| number.parse::<u32>().ok()) else {
        return Err(HostDeviceError::Internal(format!("Cannot parse adapter '{adapter}'")));
    };
    let generic = sys.join(format!("bus/scsi/devices/{host}:{bus}:{target}:{unit}/scsi_generic"));
    let first = fs::read_dir(&generic).ok().and_then(|mut entries| entries.next()?.ok());
    let Some(first) = first else {
        let sentence = format!("cannot open directory '{}': No such file or directory", generic.display());
        return Err(HostDeviceError::Failed(sentence));
    };
    Ok(Some(Path::new("/dev").join(first.file_name())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::domain::Domain;
    use crate::conf::xml::Form;

    fn devices(xml: &str) -> Devices {
        let text = format!(
            "<domain type='qemu'><name>x</name><os><type>hvm</type></os><devices>{xml}</devices></domain>"
        );
        Domain::parse(&text, Form::INACTIVE).unwrap().devices
    }

    fn pci(managed: &str) -> Devices {
        devices(&format!(
            "<hostdev mode='subsystem' type='pci' managed='{managed}'><source>\
             <address domain='0' bus='3' slot='4' function='1'/></source></hostdev>"
        ))
    }

    #[test]
    fn pci_devices_must_have_been_taken_from_the_host() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("bus/pci/devices/0000:03:04.1");
        let missing = resolve_in(&mut pci("no"), sys.path()).unwrap_err();
        assert!(matches!(missing, HostDeviceError::Internal(_)), "{missing}");
        fs::create_dir_all(&device).unwrap();
        let unbound = "Unmanaged PCI device 0000:03:04.1 must be manually detached from the host";
        assert_eq!(resolve_in(&mut pci("no"), sys.path()).unwrap_err().to_string(), unbound);
        std::os::unix::fs::symlink("../../drivers/e1000e", device.join("driver")).unwrap();
        assert_eq!(resolve_in(&mut pci("no"), sys.path()).unwrap_err().to_string(), unbound);
        fs::remove_file(device.join("driver")).unwrap();
        std::os::unix::fs::symlink("../../drivers/vfio-pci", device.join("driver")).unwrap();
        assert_eq!(resolve_in(&mut pci("no"), sys.path()), Ok(()));
        let managed = resolve_in(&mut pci("yes"), sys.path()).unwrap_err();
        assert!(matches!(managed, HostDeviceError::Unsupported(_)), "{managed}");
    }

    #[test]
    fn qemu_uses_a_device_through_its_file_or_that_of_its_group() {
        let sys = tempfile::tempdir().unwrap();
        let device = sys.path().join("bus/pci/devices/0000:03:04.1");
        fs::create_dir_all(&device).unwrap();
        std::os::unix::fs::symlink("../../../kernel/iommu_groups/27", device.join("iommu_group")).unwrap();
        let generic = sys.path().join("bus/scsi/devices/4:0:1:2/scsi_generic/sg7");
        fs::create_dir_all(generic).unwrap();
        let scsi = "<hostdev type='scsi'><source><adapter name='scsi_host4'/>\
                    <address bus='0' target='1' unit='2'/></source></hostdev>";
        let usb = "<hostdev type='usb'><source><address bus='1' device='9'/></source></hostdev>";
        for (devices, path, is_group) in [
            (pci("no"), "/dev/vfio/27", true),
            (devices(scsi), "/dev/sg7", false),
            (devices(usb), "/dev/bus/usb/001/009", false),
        ] {
            let found = node(&devices.hostdevs[0].source, sys.path());
            assert_eq!(found, Some(Node { path: path.into(), is_group }));
        }
    }

    #[test]
    fn what_a_guest_has_no_other_gets() {
        let both = "<hostdev type='pci'><source><address domain='0' bus='3' slot='4' function='1'/></source>\
                    </hostdev><hostdev type='usb'><source><address bus='1' device='9'/></source></hostdev>";
        let scsi = |shareable: &str| {
            devices(&format!(
                "<hostdev type='scsi'><source><adapter name='scsi_host4'/><address bus='0' target='1' unit='2'/>\
                 </source>{shareable}</hostdev>"
            ))
        };
        let (plain, shared) = (scsi(""), scsi("<shareable/>"));
        let other = devices(both);
        let refused = |new: &Devices, other| {
            refuse_taken(new, [("other", other)]).map_err(|error| error.to_string()).err()
        };
        let sentence = "PCI device 0000:03:04.1 is in use by driver QEMU, domain other";
        assert_eq!(refused(&pci("no"), &other).as_deref(), Some(sentence));
        let usb = devices("<hostdev type='usb'><source><address bus='1' device='9'/></source></hostdev>");
        let sentence = "USB device 001:011 is in use by driver QEMU, domain other";
        assert_eq!(refused(&usb, &other).as_deref(), Some(sentence));
        let sentence = "SCSI device 4:0:1:2 is already in use by other domain(s) as 'shareable'";
        assert_eq!(refused(&plain, &shared).as_deref(), Some(sentence));
        assert_eq!((refused(&shared, &shared), refused(&plain, &other)), (None, None));
    }

    #[test]
    fn usb_devices_are_found_by_what_they_say_they_are() {
        let sys = tempfile::tempdir().unwrap();
        for (name, ids, place) in
            [("1-1", ("046d", "c52b"), ("1", "5")), ("1-2", ("046d", "c52c"), ("1", "6"))]
        {
            let device = sys.path().join("bus/usb/devices").join(name);
            fs::create_dir_all(&device).unwrap();
            for (file, text) in
                [("idVendor", ids.0), ("idProduct", ids.1), ("busnum", place.0), ("devnum", place.1)]
            {
                fs::write(device.join(file), format!("{text}\n")).unwrap();
            }
        }
        let usb = |source: &str| devices(&format!("<hostdev type='usb'><source{source}</source></hostdev>"));
        let mut found = usb("><vendor id='0x046d'/><product id='0xc52c'/>");
        resolve_in(&mut found, sys.path()).unwrap();
        let HostdevSource::Usb(device) = &found.hostdevs[0].source else { panic!() };
        assert_eq!((device.bus, device.device, device.auto_address), (1, 6, true));
        let absent = resolve_in(&mut usb("><vendor id='0x1'/><product id='0x2'/>"), sys.path()).unwrap_err();
        assert_eq!(absent.to_string(), "Did not find USB device 0001:0002");
        let mut optional = usb(" startupPolicy='optional'><vendor id='0x1'/><product id='0x2'/>");
        resolve_in(&mut optional, sys.path()).unwrap();
        let HostdevSource::Usb(device) = &optional.hostdevs[0].source else { panic!() };
        assert!(device.missing);
    }
}
