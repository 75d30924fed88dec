//! Devices of the host that the guest has for itself.

use super::address::Generation;
use super::line::{Line, Props};
use super::remote;
use super::secret::{self, SecretNeed};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{
    Address, DeviceInfo, GuestReset, Hostdev, HostdevDriverName, HostdevSource, Mdev, MdevModel, PciHostdev,
    ScsiHostdev, ScsiPlace, Teaming, TeamingType, UsbHostdev, VhostScsi, VhostScsiModel, VirtioOptions,
};
use crate::conf::xml::OnOff;
use crate::qemu::capabilities::Cap;

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for hostdev in &guest.domain.devices.hostdevs {
        guest.hostdev(line, hostdev)?;
    }
    Ok(())
}

/// The block node of a SCSI device.
pub(super) fn node_name(scsi: &ScsiHostdev) -> Result<String> {
    match scsi.index {
        Some(number) => Ok(format!("libvirt-{number}-backend")),
        None => internal("SCSI host device has no node number"),
    }
}

/// The password for an iSCSI server.
pub(super) fn secrets(hostdev: &Hostdev) -> Option<SecretNeed> {
    let HostdevSource::Scsi(scsi) = &hostdev.source else { return None };
    let ScsiPlace::Iscsi { auth: Some(auth), source } = &scsi.place else { return None };
    let need = secret::of_auth("", auth, Some(source));
    Some(SecretNeed { id: format!("{}-secret0", node_name(scsi).ok()?), ..need })
}

impl Guest<'_> {
    fn hostdev(&self, line: &mut Line<'_>, hostdev: &Hostdev) -> Result<()> {
        let info = &hostdev.info;
        let props = match &hostdev.source {
            // The guest does not see it, and nobody else uses it.
            HostdevSource::Pci(_) if info.address == Some(Address::Unassigned) => return Ok(()),
            HostdevSource::Pci(pci) => {
                let place = self.boot_place_of_hostdev(info);
                self.pci_hostdev(pci, info, place, hostdev.teaming.as_deref())?
            }
            HostdevSource::Usb(usb) => self.usb_hostdev(usb, info)?,
            HostdevSource::Mdev(mdev) => self.mdev(mdev, info)?,
            HostdevSource::VhostScsi(scsi) => self.vhost_scsi(scsi, info)?,
            HostdevSource::Scsi(scsi) => {
                self.scsi_backend(line, hostdev, scsi)?;
                let props = Props::driver("scsi-generic")
                    .set("drive", node_name(scsi)?)
                    .set("id", self.alias(info)?)
                    .nonzero("bootindex", boot_order(info));
                match &info.address {
                    Some(Address::Drive(address)) => self.at_scsi(props, address)?,
                    _ => return internal("SCSI host device has no address"),
                }
            }
            HostdevSource::Capabilities { .. } => {
                return unsupported("hostdev mode 'capabilities' is not supported");
            }
        };
        line.device(props);
        Ok(())
    }

    /// A PCI device, also one behind a network card.
    pub(super) fn pci_hostdev(
        &self,
        pci: &PciHostdev,
        info: &DeviceInfo,
        boot_place: u32,
        teaming: Option<&Teaming>,
    ) -> Result<Props> {
        if !matches!(pci.driver.name, None | Some(HostdevDriverName::Vfio)) {
            let name = pci.driver.name.map_or("default", HostdevDriverName::as_str);
            return internal(format!("invalid PCI passthrough type '{name}'"));
        }
        let ramfb = pci.ramfb == Some(OnOff::On);
        let address = &pci.address;
        let (domain, bus, slot, function) = (address.domain, address.bus, address.slot, address.function);
        let partner = teaming.filter(|teaming| teaming.kind == TeamingType::Transient);
        let props = Props::driver(if ramfb { "vfio-pci-nohotplug" } else { "vfio-pci" })
            .set("host", format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
            .set("id", self.alias(info)?)
            .nonzero("bootindex", boot_place)
            .maybe("failover_pair_id", partner.and_then(|teaming| teaming.persistent.as_deref()))
            .maybe("display", pci.display.map(OnOff::as_str))
            .maybe("ramfb", ramfb.then_some(true));
        let props = self.at(props, info)?;
        Ok(self.rom(props, info))
    }

    fn usb_hostdev(&self, usb: &UsbHostdev, info: &DeviceInfo) -> Result<Props> {
        let mut props = Props::driver("usb-host");
        if !usb.missing {
            if usb.bus == 0 && usb.device == 0 {
                return internal("USB host device is missing bus/device information");
            }
            props = match self.supports(Cap::UsbHostHostdevice) {
                true => props.set("hostdevice", format!("/dev/bus/usb/{:03}/{:03}", usb.bus, usb.device)),
                false => props.set("hostbus", usb.bus).set("hostaddr", usb.device),
            };
        }
        let (reset, resets_all) = match usb.guest_reset {
            None => (None, None),
            Some(GuestReset::Off) => (Some(false), None),
            Some(GuestReset::Uninitialized) => (Some(true), Some(false)),
            Some(GuestReset::On) => (Some(true), Some(true)),
        };
        let props = props
            .set("id", self.alias(info)?)
            .nonzero("bootindex", boot_order(info))
            .maybe("guest-reset", reset)
            .maybe("guest-resets-all", resets_all);
        self.at(props, info)
    }

    fn mdev(&self, mdev: &Mdev, info: &DeviceInfo) -> Result<Props> {
        let ramfb = mdev.ramfb == Some(OnOff::On);
        let driver = match mdev.model {
            MdevModel::VfioPci if ramfb => "vfio-pci-nohotplug",
            model => model.as_str(),
        };
        let props = Props::driver(driver)
            .set("id", self.alias(info)?)
            .set("sysfsdev", format!("/sys/bus/mdev/devices/{}", mdev.uuid))
            .maybe("display", mdev.display.map(OnOff::as_str))
            .maybe("ramfb", ramfb.then_some(true))
            .nonzero("bootindex", boot_order(info));
        self.at(props, info)
    }

    fn vhost_scsi(&self, scsi: &VhostScsi, info: &DeviceInfo) -> Result<Props> {
        let alias = self.alias(info)?;
        let generation = match scsi.model {
            None | Some(VhostScsiModel::Virtio) => Generation::Any,
            Some(VhostScsiModel::VirtioTransitional) => Generation::Transitional,
            Some(VhostScsiModel::VirtioNonTransitional) => Generation::NonTransitional,
        };
        let descriptor = self.context.descriptors.chardev(alias)?;
        let props = self.virtio("vhost-scsi", generation, info, &VirtioOptions::default())?;
        let props = props.set("wwpn", &*scsi.wwpn).set("vhostfd", descriptor.to_string()).set("id", alias);
        self.at(props, info)
    }

    fn scsi_backend(&self, line: &mut Line<'_>, hostdev: &Hostdev, scsi: &ScsiHostdev) -> Result<()> {
        let node = node_name(scsi)?;
        let props = match &scsi.place {
            ScsiPlace::Host { path: Some(path), .. } => Props::driver("host_device").set("filename", &**path),
            ScsiPlace::Host { adapter, bus, target, unit, .. } => {
                return internal(format!(
                    "the host has no generic SCSI device for '{adapter}' bus {bus} target {target} unit {unit}"
                ));
            }
            ScsiPlace::Iscsi { source, auth } => {
                let key = secrets(hostdev).map(|need| need.id);
                if let Some(key) = &key {
                    self.secret(line, key)?;
                }
                remote::iscsi(source, auth.as_deref().map(|auth| &*auth.username).zip(key.as_deref()))?
            }
        };
        line.json("-blockdev", props.set("node-name", node).set("read-only", hostdev.readonly));
        Ok(())
    }
}

fn boot_order(info: &DeviceInfo) -> u32 {
    info.boot.as_ref().map_or(0, |boot| boot.order)
}
