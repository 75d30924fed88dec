//! What the guest boots from.

use super::line::{Line, escape_comma};
use super::{Guest, Result};
use crate::conf::devices::{DeviceInfo, Disk, DiskDevice};
use crate::conf::domain::{AcpiTableType, BootDevice, Domain, LoaderType};
use crate::conf::xml::YesNo;

/// Places in the boot order that follow from `<os><boot dev=…/></os>`: each kind of device gives its place
/// to the first of its kind.
#[derive(Debug, Default)]
pub(crate) struct BootOrder {
    /// Index into the list of disks, and place.
    disks: Vec<(usize, u32)>,
    network: u32,
}

impl BootOrder {
    pub(super) fn of(domain: &Domain) -> Self {
        let place = |wanted: BootDevice| {
            let entries = domain.os.boot.iter();
            entries.zip(1..).filter(|(entry, _)| entry.dev == wanted).map(|(_, place)| place).last()
        };
        let mut order = Self { disks: Vec::new(), network: place(BootDevice::Network).unwrap_or(0) };
        for (kinds, device) in [
            (&[DiskDevice::Cdrom][..], BootDevice::Cdrom),
            (&[DiskDevice::Floppy], BootDevice::Fd),
            (&[DiskDevice::Disk, DiskDevice::Lun], BootDevice::Hd),
        ] {
            let first = domain.devices.disks.iter().position(|disk| kinds.contains(&disk.device));
            if let (Some(disk), Some(place)) = (first, place(device)) {
                order.disks.push((disk, place));
            }
        }
        order
    }
}

impl Guest<'_> {
    fn own_place(info: &DeviceInfo) -> u32 {
        info.boot.as_ref().map_or(0, |boot| boot.order)
    }

    pub(super) fn boot_place_of_disk(&self, disk: &Disk) -> u32 {
        if self.domain.os.boot.is_empty() {
            return Self::own_place(&disk.info);
        }
        let disks = &self.domain.devices.disks;
        let chosen = self.boot.disks.iter();
        let is_it = |index: usize| disks.get(index).is_some_and(|it| std::ptr::eq(it, disk));
        chosen.clone().find(|(index, _)| is_it(*index)).map_or(0, |(_, place)| *place)
    }

    pub(super) fn boot_place_of_interface(&self, index: usize, info: &DeviceInfo) -> u32 {
        match (self.domain.os.boot.is_empty(), index) {
            (true, _) => Self::own_place(info),
            (false, 0) => self.boot.network,
            (false, _) => 0,
        }
    }
}

pub(super) fn firmware(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    if let Some(loader) = &guest.domain.os.loader
        && loader.kind == Some(LoaderType::Rom)
    {
        line.option("-bios", loader.path.as_deref().unwrap_or_default());
    }
    Ok(())
}

pub(super) fn build(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let os = &guest.domain.os;
    let mut text = String::new();
    match os.bootmenu.and_then(|menu| menu.enable) {
        Some(YesNo::Yes) => text.push_str("menu=on,"),
        Some(YesNo::No) => text.push_str("menu=off,"),
        None => {}
    }
    if let Some(timeout) = os.bios.reboot_timeout_ms {
        text.push_str(&format!("reboot-timeout={timeout},"));
    }
    if let Some(timeout) = os.bootmenu.and_then(|menu| menu.timeout_ms) {
        text.push_str(&format!("splash-time={timeout},"));
    }
    line.option("-boot", text + "strict=on");
    let files = [
        ("-kernel", &os.kernel),
        ("-initrd", &os.initrd),
        ("-append", &os.cmdline),
        ("-shim", &os.shim),
        ("-dtb", &os.dtb),
    ];
    for (name, value) in files {
        if let Some(value) = value {
            line.option(name, &**value);
        }
    }
    for table in &os.acpi_tables {
        let signature = match table.kind {
            AcpiTableType::Raw | AcpiTableType::Rawset => "",
            AcpiTableType::Slic => "sig=SLIC,",
            AcpiTableType::Msdm => "sig=MSDM,",
        };
        let path = escape_comma(table.path.as_deref().unwrap_or_default());
        line.option("-acpitable", format!("{signature}file={path}"));
    }
    Ok(())
}
