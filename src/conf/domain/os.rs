//! `<os>`: machine, firmware, what boots.

use crate::conf::devices::Raw;
use crate::conf::xml::{Element, Part, Writer, YesNo, read_body, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::arch::Arch;

xml_enum! {
    pub enum OsType {
        Hvm = "hvm",
        Xen = "xen",
        Linux = "linux",
        Exe = "exe",
        Uml = "uml",
        Xenpvh = "xenpvh",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown OS type '{text}'"))
}

xml_enum! {
    pub enum FirmwareKind {
        Bios = "bios",
        Efi = "efi",
    }
    refuse |_place, text| ConfError::xml(format!("unknown firmware value {text}"))
}

xml_enum! {
    /// Where to look for a system, in which order.
    pub enum BootDevice {
        Fd = "fd",
        Cdrom = "cdrom",
        Hd = "hd",
        Network = "network",
    }
}

xml! {
    pub struct Os {
        /// Lets the host choose a firmware.
        attr(local) firmware: Option<FirmwareKind> = "firmware";
        child os_type: Machine = "type";
        list(local) firmware_features: Vec<FirmwareFeature> = "firmware" / "feature";
        text init: Option<Box<str>> = "init";
        text initargs: Vec<Box<str>> = "initarg";
        child loader: Option<Box<Loader>> = "loader";
        child nvram: Option<Box<Nvram>> = "nvram";
        text kernel: Option<Box<str>> = "kernel";
        text initrd: Option<Box<str>> = "initrd";
        text cmdline: Option<Box<str>> = "cmdline";
        text shim: Option<Box<str>> = "shim";
        text dtb: Option<Box<str>> = "dtb";
        text root: Option<Box<str>> = "root";
        list acpi_tables: Vec<AcpiTable> = "acpi" / "table";
        child boot: Vec<BootEntry> = "boot";
        child bootmenu: Option<Bootmenu> = "bootmenu";
        group bios: Bios = "bios";
        child_attr smbios: Option<SmbiosMode> = "smbios" / "mode";
    }
}

xml! {
    /// `<type>`
    pub struct Machine {
        attr arch: Option<Arch> = "arch";
        /// After [`super::Domain::defaults`] the canonical name: `pc-q35-10.0`, not `q35`.
        attr machine: Option<Box<str>> = "machine";
        flat kind: OsTypeText;
    }
}

/// The text of `<type>`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OsTypeText(pub OsType);

impl Part for OsTypeText {
    fn read(element: Element<'_>) -> Result<Self> {
        let kind = read_body(element)?.ok_or_else(|| ConfError::xml("an os <type> must be specified"))?;
        Ok(Self(kind))
    }

    fn write_children(&self, out: &mut Writer) {
        out.body(&self.0);
    }
}

xml_enum! {
    pub enum FirmwareFeatureName {
        EnrolledKeys = "enrolled-keys",
        SecureBoot = "secure-boot",
    }
}

xml! {
    #[derive(Copy)]
    pub struct FirmwareFeature {
        attr enabled: YesNo = "enabled";
        attr name: FirmwareFeatureName = "name";
    }
}

xml_enum! {
    pub enum LoaderType {
        Rom = "rom",
        Pflash = "pflash",
    }
}

xml_enum! {
    /// Formats a firmware image may have.
    pub enum FirmwareFormat {
        Raw = "raw",
        Qcow2 = "qcow2",
    }
}

xml! {
    /// The firmware's code.
    #[derive(Default)]
    pub struct Loader {
        attr readonly: Option<YesNo> = "readonly";
        attr secure: Option<YesNo> = "secure";
        attr kind: Option<LoaderType> = "type";
        attr stateless: Option<YesNo> = "stateless";
        attr format: Option<FirmwareFormat> = "format";
        body path: Option<Box<str>>;
    }
}

xml! {
    /// The firmware's variables.
    #[derive(Default)]
    pub struct Nvram {
        attr template: Option<Box<str>> = "template";
        attr template_format: Option<FirmwareFormat> = "templateFormat";
        attr source_type: Option<NvramSourceType> = "type";
        attr format: Option<FirmwareFormat> = "format";
        flat place: NvramPlace;
    }
}

xml_enum! {
    pub enum NvramSourceType {
        File = "file",
        Block = "block",
        Network = "network",
    }
}

/// The path: the element's text, or an attribute of `<source>` where the type is spelled out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NvramPlace {
    pub path: Option<Box<str>>,
    pub source_type: Option<NvramSourceType>,
    /// A place that is not on this host.
    pub remote: Option<Box<Raw>>,
}

impl NvramPlace {
    pub fn is_empty(&self) -> bool {
        self.path.is_none() && self.remote.is_none()
    }

    pub fn is_remote(&self) -> bool {
        self.remote.is_some()
    }
}

impl NvramSourceType {
    fn attribute(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Block => "dev",
            Self::Network => "name",
        }
    }
}

impl Part for NvramPlace {
    fn read(element: Element<'_>) -> Result<Self> {
        let source_type: Option<NvramSourceType> = element.value("type")?;
        if let (Some(NvramSourceType::Network), Some(source)) = (source_type, element.child("source")) {
            let remote = Some(Box::new(Raw::read(source)?));
            return Ok(Self { path: None, source_type, remote });
        }
        let path = match (source_type, element.child("source")) {
            (Some(kind), Some(source)) => source.value(kind.attribute())?,
            (Some(_), None) => None,
            (None, _) => read_body(element)?,
        };
        Ok(Self { path, source_type, remote: None })
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some(remote) = &self.remote {
            Part::write(remote, out, "source");
        }
        match (self.source_type, &self.path) {
            (None, Some(path)) => out.body(path),
            (Some(kind), Some(path)) => out.element("source", |out| out.attribute(kind.attribute(), path)),
            (_, None) => {}
        }
    }
}

xml_enum! {
    pub enum AcpiTableType {
        Raw = "raw",
        Rawset = "rawset",
        Slic = "slic",
        Msdm = "msdm",
    }
}

xml! {
    pub struct AcpiTable {
        attr kind: AcpiTableType = "type";
        body path: Option<Box<str>>;
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct BootEntry {
        attr dev: BootDevice = "dev";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Bootmenu {
        attr enable: Option<YesNo> = "enable";
        attr timeout_ms: Option<u32> = "timeout";
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct Bios {
        attr useserial: Option<YesNo> = "useserial";
        attr reboot_timeout_ms: Option<i32> = "rebootTimeout";
    }
}

xml_enum! {
    /// Where SMBIOS tables come from.
    pub enum SmbiosMode {
        Emulate = "emulate",
        Host = "host",
        Sysinfo = "sysinfo",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown smbios mode '{text}'"))
}
