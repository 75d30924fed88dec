//! Buses: PCI bridges and ports, USB, SCSI, SATA, virtio-serial.

use super::address::Generation;
use super::disk::iothread_mapping;
use super::line::{Line, Props};
use super::{Guest, Result, internal, unsupported};
use crate::conf::devices::{
    Controller, ControllerKind, ControllerType, PciModel, PciOptions, ScsiModel, UsbModel, UsbOptions,
    VirtioModel, VirtioSerialOptions,
};
use crate::qemu::capabilities::Cap;

/// Sizes of windows that belong to the root.
pub(super) fn global(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for controller in &guest.domain.devices.controllers {
        let Some(options) = controller.pci_options() else { continue };
        let Some(size) = options.pcihole64_kib else { continue };
        let host = match options.model {
            Some(PciModel::PciRoot) => "i440FX-pcihost",
            Some(PciModel::PcieRoot) => "q35-pcihost",
            _ => return internal("64-bit PCI hole setting is only for root PCI controllers"),
        };
        line.option("-global", format!("{host}.pci-hole64-size={size}K"));
    }
    Ok(())
}

/// A bus must be there before what is plugged into it.
const ORDER: &[ControllerType] = &[
    ControllerType::Pci,
    ControllerType::Usb,
    ControllerType::Scsi,
    ControllerType::Ide,
    ControllerType::Sata,
    ControllerType::VirtioSerial,
];

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    ORDER.iter().try_for_each(|bus| build_bus(guest, line, *bus))
}

/// Smartcard readers sit on USB hubs.
pub(super) fn ccid(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    build_bus(guest, line, ControllerType::Ccid)
}

pub(super) fn hubs(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for hub in &guest.domain.devices.hubs {
        let props = Props::driver("usb-hub").set("id", guest.alias(&hub.info)?);
        line.device(guest.at(props, &hub.info)?);
    }
    Ok(())
}

fn build_bus(guest: &Guest<'_>, line: &mut Line<'_>, bus: ControllerType) -> Result<()> {
    let controllers = guest.domain.devices.controllers.iter();
    for controller in controllers.filter(|controller| controller.kind.bus() == bus) {
        root_hotplug(controller, line);
        if guest.is_implicit(controller) {
            continue;
        }
        let props = guest.controller_props(controller)?;
        line.device(guest.at(props, &controller.info)?);
    }
    Ok(())
}

fn root_hotplug(controller: &Controller, line: &mut Line<'_>) {
    if let Some(options) = controller.pci_options()
        && options.model == Some(PciModel::PciRoot)
        && controller.index() == 0
        && let Some(hotplug) = options.target.hotplug
    {
        line.option("-global", format!("PIIX4_PM.acpi-root-pci-hotplug={hotplug}"));
    }
}

impl Guest<'_> {
    /// Whether the machine has the controller by itself, or nobody has.
    fn is_implicit(&self, controller: &Controller) -> bool {
        match &controller.kind {
            ControllerKind::Pci(options) => {
                matches!(options.model, Some(PciModel::PciRoot | PciModel::PcieRoot))
            }
            ControllerKind::Sata => controller.index() == 0 && self.is_q35(),
            ControllerKind::Ide(_) => controller.index() == 0 && self.has_builtin_ide(),
            ControllerKind::Usb(options) => options.model == Some(UsbModel::None),
            _ => false,
        }
    }

    fn controller_props(&self, controller: &Controller) -> Result<Props> {
        let alias = self.alias(&controller.info)?;
        match &controller.kind {
            ControllerKind::Pci(options) => pci(options, alias),
            ControllerKind::Usb(options) => self.usb(controller, options),
            ControllerKind::Scsi(model) => self.scsi(controller, *model),
            ControllerKind::VirtioSerial(options) => {
                let VirtioSerialOptions { model, ports, vectors } = options;
                let generation = match model {
                    Some(VirtioModel::VirtioTransitional) => Generation::Transitional,
                    Some(VirtioModel::VirtioNonTransitional) => Generation::NonTransitional,
                    Some(VirtioModel::Virtio) | None => Generation::Any,
                };
                let options = &controller.driver.virtio;
                let props = self.virtio("virtio-serial", generation, &controller.info, options)?;
                Ok(props.set("id", alias).maybe("max_ports", *ports).maybe("vectors", *vectors))
            }
            ControllerKind::Ccid => Ok(Props::driver("usb-ccid").set("id", alias)),
            ControllerKind::Sata => Ok(Props::driver("ahci").set("id", alias)),
            ControllerKind::Ide(_) | ControllerKind::Fdc | ControllerKind::Xenbus | ControllerKind::Isa => {
                unsupported(format!("Unsupported controller type: {}", controller.kind.bus()))
            }
        }
    }

    fn usb(&self, controller: &Controller, options: &UsbOptions) -> Result<Props> {
        let (driver, cap) = match options.model {
            Some(UsbModel::Piix3Uhci) => ("piix3-usb-uhci", Cap::Piix3UsbUhci),
            Some(UsbModel::Piix4Uhci) => ("piix4-usb-uhci", Cap::Piix4UsbUhci),
            Some(UsbModel::Ehci) => ("usb-ehci", Cap::UsbEhci),
            Some(UsbModel::Ich9Ehci1) => ("ich9-usb-ehci1", Cap::Ich9UsbEhci1),
            Some(UsbModel::Ich9Uhci1) => ("ich9-usb-uhci1", Cap::Ich9UsbEhci1),
            Some(UsbModel::Ich9Uhci2) => ("ich9-usb-uhci2", Cap::Ich9UsbEhci1),
            Some(UsbModel::Ich9Uhci3) => ("ich9-usb-uhci3", Cap::Ich9UsbEhci1),
            Some(UsbModel::Vt82c686bUhci) => ("vt82c686b-usb-uhci", Cap::Vt82c686bUsbUhci),
            Some(UsbModel::PciOhci) => ("pci-ohci", Cap::PciOhci),
            Some(UsbModel::NecXhci) => ("nec-usb-xhci", Cap::NecUsbXhci),
            Some(UsbModel::QemuXhci) => ("qemu-xhci", Cap::DeviceQemuXhci),
            Some(UsbModel::Qusb1 | UsbModel::Qusb2 | UsbModel::None) | None => {
                let name = options.model.map_or("default", UsbModel::as_str);
                return unsupported(format!("USB controller model type '{name}' is not supported"));
            }
        };
        if !self.supports(cap) {
            let name = options.model.map_or("default", UsbModel::as_str);
            return unsupported(format!("USB controller model '{name}' not supported in this QEMU binary"));
        }
        let props = Props::driver(driver).maybe("p2", options.ports).maybe("p3", options.ports);
        let Some(port) = controller.info.master_startport else {
            return Ok(props.set("id", self.alias(&controller.info)?));
        };
        // A companion is a part of the controller that has the same index and no master.
        let master = self.domain.devices.controllers.iter().find(|other| {
            other.kind.bus() == ControllerType::Usb
                && other.index() == controller.index()
                && other.info.master_startport.is_none()
        });
        let Some(master) = master else { return internal("masterbus not found") };
        let bus = format!("{}.0", self.alias(&master.info)?);
        Ok(props.set("masterbus", bus).set("firstport", port))
    }

    fn scsi(&self, controller: &Controller, model: Option<ScsiModel>) -> Result<Props> {
        let alias = self.alias(&controller.info)?;
        let plain = |driver: &str| Ok(Props::driver(driver).set("id", alias));
        match model {
            Some(model) if model.is_virtio() => {
                let generation = match model {
                    ScsiModel::VirtioTransitional => Generation::Transitional,
                    ScsiModel::VirtioNonTransitional => Generation::NonTransitional,
                    _ => Generation::Any,
                };
                let driver = &controller.driver;
                let iothread = (driver.iothread > 0).then(|| format!("iothread{}", driver.iothread));
                Ok(self
                    .virtio("virtio-scsi", generation, &controller.info, &driver.virtio)?
                    .maybe("iothread", iothread)
                    .set("id", alias)
                    .nonzero("num_queues", driver.queues)
                    .maybe("iothread-vq-mapping", driver.iothreads.as_deref().map(iothread_mapping))
                    .nonzero("cmd_per_lun", driver.cmd_per_lun)
                    .nonzero("max_sectors", driver.max_sectors)
                    .switch("ioeventfd", driver.ioeventfd))
            }
            Some(ScsiModel::Lsilogic) => plain("lsi"),
            Some(ScsiModel::Lsisas1068) => plain("mptsas1068"),
            Some(ScsiModel::Lsisas1078) => plain("megasas"),
            Some(ScsiModel::Vmpvscsi) => plain("pvscsi"),
            Some(ScsiModel::Am53c974) => plain("am53c974"),
            Some(ScsiModel::Dc390) => plain("dc-390"),
            Some(ScsiModel::Ibmvscsi) => plain("spapr-vscsi"),
            Some(model) => unsupported(format!("Unsupported controller model: {model}")),
            None => internal("Unexpected SCSI controller model default"),
        }
    }
}

fn pci(options: &PciOptions, alias: &str) -> Result<Props> {
    let Some(name) = options.model_name else {
        return internal("Unknown virDomainControllerPCIModelName value: none");
    };
    let target = &options.target;
    let reserve = target.mem_reserve_kib.unwrap_or_default() * 1024;
    let props = Props::driver(name.as_str());
    Ok(match options.model {
        Some(PciModel::PciBridge) => {
            props.maybe("chassis_nr", target.chassis_nr).nonzero("mem-reserve", reserve).set("id", alias)
        }
        Some(PciModel::PciExpanderBus | PciModel::PcieExpanderBus) => {
            props.maybe("bus_nr", target.bus_nr).set("id", alias).maybe("numa_node", target.node)
        }
        Some(PciModel::DmiToPciBridge | PciModel::PcieSwitchUpstreamPort | PciModel::PcieToPciBridge) => {
            props.set("id", alias)
        }
        Some(PciModel::PcieRootPort | PciModel::PcieSwitchDownstreamPort) => props
            .maybe("port", target.port)
            .maybe("chassis", target.chassis)
            .set("id", alias)
            .switch("hotplug", target.hotplug)
            .nonzero("mem-reserve", reserve),
        Some(PciModel::PciRoot | PciModel::PcieRoot) | None => {
            return unsupported("Unsupported PCI Express root controller");
        }
    })
}
