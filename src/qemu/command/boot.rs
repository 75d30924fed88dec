//! What the guest boots from.

use super::line::{Line, Props, escape_comma};
use super::{Guest, Result, unsupported};
use crate::conf::devices::{DeviceInfo, Disk, DiskDevice};
use crate::conf::domain::{AcpiTableType, BootDevice, Domain, FirmwareFormat, LoaderType, NvramSourceType};
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

impl Guest<'_> {
    /// A device of the host takes part in the order of devices only.
    pub(super) fn boot_place_of_hostdev(&self, info: &DeviceInfo) -> u32 {
        if self.domain.os.boot.is_empty() { Self::own_place(info) } else { 0 }
    }
}

/// The images in the guest's flash: code, and variables where they are apart.
struct Flash<'a> {
    option: &'static str,
    storage: &'static str,
    format_node: &'static str,
    path: Option<&'a str>,
    is_block: bool,
    format: FirmwareFormat,
    readonly: bool,
    /// Raw variables need no format node.
    is_plain: bool,
}

fn flashes(domain: &Domain) -> Vec<Flash<'_>> {
    let os = &domain.os;
    let Some(loader) = os.loader.as_deref().filter(|loader| loader.kind == Some(LoaderType::Pflash)) else {
        return Vec::new();
    };
    let code = Flash {
        option: "pflash0",
        storage: "libvirt-pflash0-storage",
        format_node: "libvirt-pflash0-format",
        path: loader.path.as_deref(),
        is_block: false,
        format: loader.format.unwrap_or(FirmwareFormat::Raw),
        readonly: loader.readonly == Some(YesNo::Yes),
        is_plain: false,
    };
    let variables = os.nvram.as_deref().map(|nvram| {
        let format = nvram.format.unwrap_or(FirmwareFormat::Raw);
        Flash {
            option: "pflash1",
            storage: "libvirt-pflash1-storage",
            format_node: "libvirt-pflash1-format",
            path: nvram.place.path.as_deref(),
            is_block: nvram.source_type == Some(NvramSourceType::Block),
            format,
            readonly: false,
            is_plain: format == FirmwareFormat::Raw,
        }
    });
    std::iter::once(code).chain(variables).collect()
}

/// Options of the machine, and the block nodes they name.
pub(super) fn flash_nodes(domain: &Domain) -> Vec<(&'static str, &'static str)> {
    let node = |flash: &Flash<'_>| if flash.is_plain { flash.storage } else { flash.format_node };
    flashes(domain).iter().map(|flash| (flash.option, node(flash))).collect()
}

pub(super) fn flash(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    for flash in flashes(guest.domain) {
        let Some(path) = flash.path else {
            return unsupported("firmware variables that are not on this host are not supported");
        };
        let driver = if flash.is_block { "host_device" } else { "file" };
        let storage = Props::driver(driver).set("filename", path).set("node-name", flash.storage);
        if flash.is_plain {
            line.json("-blockdev", storage.set("read-only", flash.readonly));
            continue;
        }
        line.json("-blockdev", storage.set("auto-read-only", true).set("discard", "unmap"));
        let format = Props::new()
            .set("node-name", flash.format_node)
            .set("read-only", flash.readonly)
            .set("driver", flash.format.as_str())
            .set("file", flash.storage);
        let ends = flash.format == FirmwareFormat::Qcow2;
        line.json("-blockdev", format.maybe("backing", ends.then_some(serde_json::Value::Null)));
    }
    Ok(())
}

pub(super) fn firmware(guest: &Guest<'_>, line: &mut Line<'_>) -> Result<()> {
    let secure = guest.domain.os.loader.as_ref().and_then(|loader| loader.secure);
    if secure == Some(YesNo::Yes) {
        line.option("-global", "driver=cfi.pflash01,property=secure,value=on");
    }
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
