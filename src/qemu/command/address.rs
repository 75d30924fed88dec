//! Where a device is plugged in, in QEMU's words.

use super::line::Props;
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{
    Address, Controller, ControllerKind, ControllerType, DeviceInfo, DiskBus, DriveAddress, PciAddress,
    PciModel, ScsiModel, VirtioOptions,
};
use crate::qemu::capabilities::Cap;

impl Guest<'_> {
    /// The alias, which every device of a running guest has.
    pub(super) fn alias<'i>(&self, info: &'i DeviceInfo) -> Result<&'i str> {
        match info.alias.as_deref() {
            Some(alias) => Ok(alias),
            None => internal("device has no alias"),
        }
    }

    pub(super) fn controller(&self, bus: ControllerType, index: u32) -> Option<&Controller> {
        let mut controllers = self.domain.devices.controllers.iter();
        controllers.find(|controller| controller.kind.bus() == bus && controller.index() == index)
    }

    pub(super) fn controller_alias(&self, bus: ControllerType, index: u32) -> Result<&str> {
        let alias = self.controller(bus, index).and_then(|controller| controller.info.alias.as_deref());
        alias.map_or_else(
            || {
                let name = bus.as_str();
                internal(format!("Could not find {name} controller with index {index} required for device"))
            },
            Ok,
        )
    }

    fn pci_bus(&self, address: &PciAddress) -> Result<&str> {
        let Some(controller) = self.controller(ControllerType::Pci, address.bus.into()) else {
            let PciAddress { domain, bus, slot, function, .. } = address;
            return internal(format!(
                "Could not find PCI controller with index '{bus}' required for device at address \
                 '{domain:04x}:{bus:02x}:{slot:02x}.{function:x}'"
            ));
        };
        let alias = self.alias(&controller.info)?;
        // The root's name is QEMU's own, whatever a user calls it.
        Ok(match controller.pci_options().and_then(|options| options.model) {
            Some(PciModel::PciRoot) if alias.starts_with("ua-") => "pci.0",
            Some(PciModel::PcieRoot) if alias.starts_with("ua-") => "pcie.0",
            _ => alias,
        })
    }

    /// Adds the address of a device, if it has one.
    pub(super) fn at(&self, props: Props, info: &DeviceInfo) -> Result<Props> {
        Ok(match &info.address {
            Some(Address::Pci(address)) => {
                let place = match address.function {
                    0 => format!("0x{:x}", address.slot),
                    function => format!("0x{:x}.0x{function:x}", address.slot),
                };
                props
                    .set("bus", self.pci_bus(address)?)
                    .switch("multifunction", address.multifunction)
                    .set("addr", place)
                    .nonzero("acpi-index", info.acpi_index.unwrap_or_default())
            }
            Some(Address::Usb(address)) => {
                let bus = self.controller_alias(ControllerType::Usb, address.bus)?;
                let port = address.port.map(|port| {
                    let mut text = String::new();
                    crate::conf::xml::Value::print(&port, &mut text);
                    text
                });
                props.set("bus", format!("{bus}.0")).maybe("port", port)
            }
            Some(Address::Isa(address)) => props
                .maybe("iobase", address.iobase.map(|base| base.0))
                .nonzero("irq", address.irq.map_or(0, |irq| irq.0)),
            Some(Address::VirtioSerial(address)) => {
                let bus = self.controller_alias(ControllerType::VirtioSerial, address.controller)?;
                props.set("bus", format!("{bus}.{}", address.bus)).set("nr", address.port)
            }
            Some(Address::Ccw(address)) => {
                let (cssid, ssid, devno) = (address.cssid.0, address.ssid.0, address.devno.0);
                props.set("devno", format!("{cssid:x}.{ssid:x}.{devno:04x}"))
            }
            Some(Address::SpaprVio(address)) => props.maybe("reg", address.reg.map(|reg| reg.0)),
            Some(Address::Dimm(address)) => {
                props.set("slot", address.slot).nonzero("addr", address.base.map_or(0, |base| base.0))
            }
            Some(Address::Drive(_) | Address::Ccid(_) | Address::VirtioMmio | Address::Unassigned) | None => {
                props
            }
        })
    }

    /// Adds the place of a drive on its bus.
    pub(super) fn at_drive(&self, props: Props, bus: DiskBus, address: &DriveAddress) -> Result<Props> {
        Ok(match bus {
            DiskBus::Ide => {
                let controller = match self.has_builtin_ide() {
                    true => "ide",
                    false => self.controller_alias(ControllerType::Ide, address.controller)?,
                };
                props.set("bus", format!("{controller}.{}", address.bus)).set("unit", address.unit)
            }
            DiskBus::Sata => {
                let controller = match self.is_q35() && address.controller == 0 {
                    true => "ide",
                    false => self.controller_alias(ControllerType::Sata, address.controller)?,
                };
                props.set("bus", format!("{controller}.{}", address.unit))
            }
            DiskBus::Fdc => props.set("unit", address.unit),
            DiskBus::Scsi => self.at_scsi(props, address)?,
            DiskBus::Virtio | DiskBus::Usb | DiskBus::Xen | DiskBus::Uml | DiskBus::Sd => {
                return internal(format!("address type drive is not supported for bus '{bus}'"));
            }
        })
    }

    pub(super) fn at_scsi(&self, props: Props, address: &DriveAddress) -> Result<Props> {
        let controller = self.controller(ControllerType::Scsi, address.controller);
        let Some(ControllerKind::Scsi(Some(model))) = controller.map(|controller| &controller.kind) else {
            return internal(format!("unable to find a SCSI controller for idx={}", address.controller));
        };
        let alias = self.controller_alias(ControllerType::Scsi, address.controller)?;
        match model {
            ScsiModel::Lsilogic | ScsiModel::Ncr53c90 | ScsiModel::Dc390 | ScsiModel::Am53c974 => {
                Ok(props.set("bus", format!("{alias}.{}", address.bus)).set("scsi-id", address.unit))
            }
            ScsiModel::Auto => internal("Unexpected SCSI controller model auto"),
            _ => Ok(props
                .set("bus", format!("{alias}.0"))
                .set("channel", address.bus)
                .set("scsi-id", address.target)
                .set("lun", address.unit)),
        }
    }

    /// A virtio device's driver and the options all of them share.
    pub(super) fn virtio(
        &self,
        name: &str,
        generation: Generation,
        info: &DeviceInfo,
        options: &VirtioOptions,
    ) -> Result<Props> {
        let bus = match &info.address {
            Some(Address::Pci(_)) => "pci",
            Some(Address::VirtioMmio) => "device",
            Some(Address::Ccw(_)) => "ccw",
            _ => return internal(format!("Unexpected address type for '{name}'")),
        };
        let has_generations = self.supports(Cap::VirtioPciTransitional);
        let suffix = match generation {
            Generation::Any => "",
            Generation::Transitional if has_generations => "-transitional",
            // A plain PCI slot makes the same of it.
            Generation::Transitional => "",
            Generation::NonTransitional if has_generations => "-non-transitional",
            Generation::NonTransitional => {
                return unsupported("virtio non-transitional model not supported for this qemu");
            }
        };
        Ok(self.virtio_options(Props::driver(format!("{name}-{bus}{suffix}")), options))
    }

    pub(super) fn virtio_options(&self, props: Props, options: &VirtioOptions) -> Props {
        props
            .switch("iommu_platform", options.iommu)
            .switch("ats", options.ats)
            .switch("packed", options.packed)
            .switch("page-per-vq", options.page_per_vq)
    }

    pub(super) fn is_q35(&self) -> bool {
        is_q35(self.machine())
    }

    pub(super) fn has_builtin_ide(&self) -> bool {
        has_builtin_ide(self.machine())
    }
}

/// Which drafts of virtio a device speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    Any,
    Transitional,
    NonTransitional,
}

/// Machines with a PCI Express root.
pub(crate) fn is_q35(machine: &str) -> bool {
    machine.starts_with("pc-q35") || machine == "q35"
}

/// Machines made after Intel's 440FX.
fn is_i440fx(machine: &str) -> bool {
    machine == "pc"
        || machine.starts_with("pc-0.")
        || machine.starts_with("pc-1.")
        || machine.starts_with("pc-i440")
        || machine.starts_with("rhel")
}

/// Machines whose first IDE controller is part of the board.
pub(crate) fn has_builtin_ide(machine: &str) -> bool {
    is_i440fx(machine) || matches!(machine, "malta" | "sun4u" | "g3beige")
}
