//! `<hostdev>`: devices of the host that a guest has for itself.

use super::info::{DeviceInfo, PciAddress};
use super::network_storage::{InitiatorName, NetworkProtocol, RemoteSource, StorageAuth, StorageHost};
use super::raw::Raw;
use super::storage::StartupPolicy;
use crate::conf::xml::{Dec, Element, Form, Hex, OnOff, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};
use crate::util::uuid::Uuid;

#[derive(Debug, Clone, PartialEq)]
pub struct Hostdev {
    /// Whether the daemon takes it from the host and gives it back.
    pub managed: YesNo,
    pub source: HostdevSource,
    pub teaming: Option<Box<Teaming>>,
    pub readonly: bool,
    pub shareable: bool,
    pub info: DeviceInfo,
}

/// Which device, by the bus that it is on.
#[derive(Debug, Clone, PartialEq)]
pub enum HostdevSource {
    Usb(Box<UsbHostdev>),
    Pci(Box<PciHostdev>),
    Scsi(Box<ScsiHostdev>),
    VhostScsi(Box<VhostScsi>),
    Mdev(Box<Mdev>),
    /// For containers: kept as it is.
    Capabilities {
        kind: Box<str>,
        source: Box<Raw>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsbHostdev {
    pub startup_policy: Option<StartupPolicy>,
    pub auto_address: bool,
    pub guest_reset: Option<GuestReset>,
    /// Vendor and product.
    pub ids: Option<(u32, u32)>,
    /// Bus and device; both 0 until the device was found.
    pub bus: u32,
    pub device: u32,
    /// The host does not have it now, and the guest may start without it.
    pub missing: bool,
}

xml_enum! {
    /// What becomes of the device when the guest resets it.
    pub enum GuestReset {
        Off = "off",
        Uninitialized = "uninitialized",
        On = "on",
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct PciHostdev {
    pub address: PciAddress,
    pub driver: HostdevDriver,
    pub write_filtering: Option<YesNo>,
    pub display: Option<OnOff>,
    pub ramfb: Option<OnOff>,
}

xml! {
    /// The host's driver that hands the device over.
    #[derive(Eq, Default)]
    pub struct HostdevDriver {
        attr name: Option<HostdevDriverName> = "name";
        attr model: Option<Box<str>> = "model";
    }
}

xml_enum! {
    pub enum HostdevDriverName {
        Kvm = "kvm",
        Vfio = "vfio",
        Xen = "xen",
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ScsiHostdev {
    pub sgio: Option<Box<str>>,
    pub rawio: Option<YesNo>,
    pub place: ScsiPlace,
    /// The number in its block node's name, once the guest was started.
    pub index: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ScsiPlace {
    Host {
        adapter: Box<str>,
        bus: u32,
        target: u32,
        unit: u64,
        /// The host's generic device, found at start.
        path: Option<Box<str>>,
    },
    Iscsi {
        source: Box<RemoteSource>,
        auth: Option<Box<StorageAuth>>,
    },
}

/// A target that the host's kernel offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VhostScsi {
    pub model: Option<VhostScsiModel>,
    pub wwpn: Box<str>,
}

xml_enum! {
    pub enum VhostScsiModel {
        Virtio = "virtio",
        VirtioTransitional = "virtio-transitional",
        VirtioNonTransitional = "virtio-non-transitional",
    }
}

/// A part of a device of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mdev {
    pub model: MdevModel,
    pub display: Option<OnOff>,
    pub ramfb: Option<OnOff>,
    pub uuid: Uuid,
}

xml_enum! {
    pub enum MdevModel {
        VfioPci = "vfio-pci",
        VfioCcw = "vfio-ccw",
        VfioAp = "vfio-ap",
    }
}

xml_enum! {
    pub enum TeamingType {
        Persistent = "persistent",
        Transient = "transient",
    }
    refuse |_place, text| ConfError::unsupported(format!("unknown teaming type '{text}'"))
}

xml! {
    /// Two network cards that stand in for each other.
    #[derive(Eq)]
    pub struct Teaming {
        attr kind: TeamingType = "type";
        attr persistent: Option<Box<str>> = "persistent";
    }
}

xml_enum! {
    pub enum HostdevKind {
        Usb = "usb",
        Pci = "pci",
        Scsi = "scsi",
        ScsiHost = "scsi_host",
        Mdev = "mdev",
    }
}

/// Whether the address of the host's device names its bus: it does where nothing else does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AddressType {
    Named,
    Known,
}

impl Part for Hostdev {
    fn read(element: Element<'_>) -> Result<Self> {
        let source = match element.attribute("mode") {
            None | Some("subsystem") => HostdevSource::read_subsystem(element)?,
            Some("capabilities") => {
                let Some(kind) = element.attribute("type") else {
                    return Err(ConfError::missing_attribute("type", "hostdev"));
                };
                let source = element.child("source").map(Raw::read).transpose()?.unwrap_or_default();
                HostdevSource::Capabilities { kind: kind.into(), source: Box::new(source) }
            }
            Some(other) => return Err(ConfError::invalid_attribute("mode", "hostdev", other, "")),
        };
        let is_scsi = matches!(source, HostdevSource::Scsi(_));
        Ok(Self {
            managed: managed(element),
            source,
            teaming: element.child("teaming").map(Teaming::read).transpose()?.map(Box::new),
            readonly: is_scsi && element.child("readonly").is_some(),
            shareable: is_scsi && element.child("shareable").is_some(),
            info: DeviceInfo::read(element)?,
        })
    }

    fn write_attributes(&self, out: &mut Writer) {
        if let HostdevSource::Capabilities { kind, .. } = &self.source {
            out.attribute_str("mode", "capabilities");
            out.attribute("type", kind);
            return;
        }
        out.attribute_str("mode", "subsystem");
        out.attribute_str("type", self.source.tag());
        out.attribute("managed", &self.managed);
        let mut switch = |name: &str, value: &Option<OnOff>| {
            if let Some(value) = value {
                out.attribute(name, value);
            }
        };
        match &self.source {
            HostdevSource::Pci(pci) => {
                switch("display", &pci.display);
                switch("ramfb", &pci.ramfb);
            }
            HostdevSource::Mdev(mdev) => {
                out.attribute("model", &mdev.model);
                let mut switch = |name: &str, value: &Option<OnOff>| {
                    if let Some(value) = value {
                        out.attribute(name, value);
                    }
                };
                switch("display", &mdev.display);
                switch("ramfb", &mdev.ramfb);
            }
            HostdevSource::Scsi(scsi) => {
                if let Some(sgio) = &scsi.sgio {
                    out.attribute("sgio", sgio);
                }
                if let Some(rawio) = &scsi.rawio {
                    out.attribute("rawio", rawio);
                }
            }
            HostdevSource::VhostScsi(scsi) => {
                if let Some(model) = &scsi.model {
                    out.attribute("model", model);
                }
            }
            HostdevSource::Usb(_) | HostdevSource::Capabilities { .. } => {}
        }
    }

    fn write_children(&self, out: &mut Writer) {
        self.source.write(out, AddressType::Known);
        if let Some(teaming) = &self.teaming {
            Part::write(teaming, out, "teaming");
        }
        if self.readonly {
            out.empty("readonly");
        }
        if self.shareable {
            out.empty("shareable");
        }
        self.info.write_children(out);
    }
}

/// What is no such word means no.
fn managed(element: Element<'_>) -> YesNo {
    if element.attribute("managed") == Some("yes") { YesNo::Yes } else { YesNo::No }
}

impl HostdevSource {
    /// The word for the bus.
    pub fn tag(&self) -> &str {
        match self {
            Self::Usb(_) => "usb",
            Self::Pci(_) => "pci",
            Self::Scsi(_) => "scsi",
            Self::VhostScsi(_) => "scsi_host",
            Self::Mdev(_) => "mdev",
            Self::Capabilities { kind, .. } => kind,
        }
    }

    fn read_subsystem(element: Element<'_>) -> Result<Self> {
        let kind: HostdevKind = element.required("type")?;
        let Some(source) = element.child("source") else {
            return Err(ConfError::xml("Missing <source> element in hostdev device"));
        };
        if kind != HostdevKind::Usb && source.attribute("startupPolicy").is_some() {
            return Err(ConfError::unsupported("Setting startupPolicy is only allowed for USB devices"));
        }
        for name in ["sgio", "rawio"] {
            if kind != HostdevKind::Scsi && element.attribute(name).is_some() {
                return Err(ConfError::xml(format!("{name} is only supported for scsi host device")));
            }
        }
        let has_model = matches!(kind, HostdevKind::Mdev | HostdevKind::ScsiHost);
        if !has_model && element.attribute("model").is_some() {
            let message = format!("'model' attribute in <hostdev> is only supported when type='{kind}'");
            return Err(ConfError::xml(message));
        }
        Ok(match kind {
            HostdevKind::Usb => Self::Usb(Box::new(UsbHostdev::read_source(source)?)),
            HostdevKind::Pci => Self::Pci(Box::new(PciHostdev {
                display: element.value("display")?,
                ramfb: element.value("ramfb")?,
                ..PciHostdev::read_source(element, source)?
            })),
            HostdevKind::Scsi => Self::Scsi(Box::new(ScsiHostdev {
                sgio: element.attribute("sgio").map(Into::into),
                rawio: element.value("rawio")?,
                place: ScsiPlace::read(source)?,
                index: None,
            })),
            HostdevKind::ScsiHost => Self::VhostScsi(Box::new(VhostScsi::read(element, source)?)),
            HostdevKind::Mdev => Self::Mdev(Box::new(Mdev::read(element, source)?)),
        })
    }

    /// The host's device behind a network card, whose address says which bus it is on.
    pub(super) fn read_network(element: Element<'_>, source: Element<'_>) -> Result<Self> {
        let Some(address) = source.child("address") else {
            return Err(ConfError::xml("Missing <source> element in hostdev device"));
        };
        match address.attribute("type") {
            Some("pci") => Ok(Self::Pci(Box::new(PciHostdev::read_source(element, source)?))),
            Some("usb") => Ok(Self::Usb(Box::new(UsbHostdev::read_source(source)?))),
            None => Err(ConfError::unsupported(
                "hostdev source address type must be specified for hostdev interfaces",
            )),
            Some(other) => Err(ConfError::unsupported(format!(
                "address type='{other}' not supported in hostdev interfaces"
            ))),
        }
    }

    pub(super) fn write(&self, out: &mut Writer, address: AddressType) {
        match self {
            Self::Usb(usb) => usb.write(out, address),
            Self::Pci(pci) => {
                pci.driver.write_group(out, "driver");
                out.element("source", |out| {
                    if let Some(filtering) = &pci.write_filtering {
                        out.attribute("writeFiltering", filtering);
                    }
                    write_pci(out, &pci.address, address);
                });
            }
            Self::Scsi(scsi) => scsi.place.write(out),
            Self::VhostScsi(scsi) => out.element("source", |out| {
                out.attribute_str("protocol", "vhost");
                out.attribute("wwpn", &scsi.wwpn);
            }),
            Self::Mdev(mdev) => out.element("source", |out| {
                out.element("address", |out| out.attribute("uuid", &mdev.uuid));
            }),
            Self::Capabilities { source, .. } => Part::write(source, out, "source"),
        }
    }

    /// Whether both stand for the same device.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Pci(one), Self::Pci(two)) => {
                let place = |it: &PciAddress| (it.domain, it.bus, it.slot, it.function);
                place(&one.address) == place(&two.address)
            }
            (Self::Usb(one), Self::Usb(two)) if one.bus != 0 && one.device != 0 => {
                (one.bus, one.device) == (two.bus, two.device)
            }
            (Self::Usb(one), Self::Usb(two)) => one.ids == two.ids,
            (Self::Scsi(one), Self::Scsi(two)) => one.place.is_same(&two.place),
            (Self::VhostScsi(one), Self::VhostScsi(two)) => one.wwpn == two.wwpn,
            (Self::Mdev(one), Self::Mdev(two)) => one.uuid == two.uuid,
            (Self::Capabilities { .. }, Self::Capabilities { .. }) => self == other,
            _ => false,
        }
    }
}

fn write_pci(out: &mut Writer, address: &PciAddress, kind: AddressType) {
    out.element("address", |out| {
        if kind == AddressType::Named {
            out.attribute_str("type", "pci");
        }
        out.attribute("domain", &Hex::<4>(address.domain.into()));
        out.attribute("bus", &Hex::<2>(address.bus.into()));
        out.attribute("slot", &Hex::<2>(address.slot.into()));
        out.attribute("function", &Hex::<1>(address.function.into()));
    });
}

impl PciHostdev {
    fn read_source(element: Element<'_>, source: Element<'_>) -> Result<Self> {
        let address = source.child("address").map(PciAddress::read).transpose()?.unwrap_or_default();
        Ok(Self {
            address: PciAddress { multifunction: None, ..address },
            driver: element.child("driver").map(HostdevDriver::read).transpose()?.unwrap_or_default(),
            write_filtering: source.value("writeFiltering")?,
            display: None,
            ramfb: None,
        })
    }
}

impl UsbHostdev {
    fn read_source(source: Element<'_>) -> Result<Self> {
        let (vendor, product) = (source.child("vendor"), source.child("product"));
        let id = |element: Element<'_>| Ok::<u32, ConfError>(element.required::<Hex<4>>("id")?.0);
        let ids = match (vendor, product) {
            (Some(vendor), Some(product)) => {
                let vendor_id = id(vendor)?;
                if vendor_id == 0 {
                    let text = vendor.attribute("id").unwrap_or_default();
                    return Err(ConfError::invalid_attribute(
                        "id",
                        "vendor",
                        text,
                        ": Zero is not permitted",
                    ));
                }
                Some((vendor_id, id(product)?))
            }
            (Some(_), None) => return Err(ConfError::internal("missing product")),
            (None, Some(_)) => return Err(ConfError::internal("missing vendor")),
            (None, None) => None,
        };
        let (mut bus, mut device) = (0, 0);
        if let Some(address) = source.child("address") {
            bus = address.required::<Dec>("bus")?.0;
            device = address.required::<Dec>("device")?.0;
        }
        Ok(Self {
            startup_policy: source.value("startupPolicy")?,
            auto_address: source.value::<YesNo>("autoAddress")? == Some(YesNo::Yes),
            guest_reset: source.value("guestReset")?,
            ids,
            bus,
            device,
            missing: source.form().contains(Form::LIVE) && source.attribute("missing") == Some("yes"),
        })
    }

    fn write(&self, out: &mut Writer, kind: AddressType) {
        out.element("source", |out| {
            if let Some(policy) = &self.startup_policy {
                out.attribute("startupPolicy", policy);
            }
            if self.auto_address && out.form().contains(Form::MIGRATABLE) {
                out.attribute_str("autoAddress", "yes");
            }
            if self.missing && out.form().contains(Form::LIVE) {
                out.attribute_str("missing", "yes");
            }
            if let Some(reset) = &self.guest_reset {
                out.attribute("guestReset", reset);
            }
            if let Some((vendor, product)) = self.ids {
                out.element("vendor", |out| out.attribute("id", &Hex::<4>(vendor)));
                out.element("product", |out| out.attribute("id", &Hex::<4>(product)));
            }
            if self.bus != 0 || self.device != 0 {
                out.element("address", |out| {
                    if kind == AddressType::Named {
                        out.attribute_str("type", "usb");
                    }
                    out.attribute("bus", &self.bus);
                    out.attribute("device", &self.device);
                });
            }
        });
    }
}

impl ScsiPlace {
    fn read(source: Element<'_>) -> Result<Self> {
        match source.attribute("protocol") {
            None | Some("adapter") => Self::read_host(source),
            Some("iscsi") => Self::read_iscsi(source),
            Some(other) => Err(ConfError::invalid_attribute("protocol", "source", other, "")),
        }
    }

    fn read_host(source: Element<'_>) -> Result<Self> {
        let Some(address) = source.child("address") else {
            return Err(ConfError::xml("'address' must be specified for scsi hostdev source"));
        };
        let (bus, target) = (address.required::<Dec>("bus")?.0, address.required::<Dec>("target")?.0);
        let unit = match address.attribute("unit") {
            None => return Err(ConfError::missing_attribute("unit", "address")),
            Some(text) => crate::conf::xml::parse_any_base(text).ok_or_else(|| {
                ConfError::invalid_attribute("unit", "address", text, " Expected non-negative integer value")
            })?,
        };
        let adapter = source.child("adapter").and_then(|adapter| adapter.attribute("name"));
        let Some(adapter) = adapter.filter(|name| !name.is_empty()) else {
            return Err(ConfError::xml("'adapter' name must be specified for scsi hostdev source"));
        };
        Ok(Self::Host { adapter: adapter.into(), bus, target, unit, path: None })
    }

    fn read_iscsi(source: Element<'_>) -> Result<Self> {
        let Some(name) = source.attribute("name") else {
            return Err(ConfError::xml("missing iSCSI hostdev source path name"));
        };
        let hosts = source.children_named("host").map(StorageHost::read).collect::<Result<Vec<_>>>()?;
        match hosts.len() {
            0 => return Err(ConfError::xml("missing the host address for the iSCSI hostdev")),
            1 => {}
            _ => {
                return Err(ConfError::xml(
                    "only one source host address may be specified for the iSCSI hostdev",
                ));
            }
        }
        let auth = source.child("auth").map(StorageAuth::read).transpose()?;
        if let Some(auth) = &auth {
            match auth.secret_type.as_deref() {
                Some("iscsi") => {}
                Some(known @ ("volume" | "ceph" | "tls" | "vtpm" | "none")) => {
                    return Err(ConfError::internal(format!("hostdev invalid secret type '{known}'")));
                }
                other => {
                    let other = other.unwrap_or("(null)");
                    return Err(ConfError::unsupported(format!("invalid secret type {other}")));
                }
            }
        }
        let initiator = source.child("initiator").and_then(|initiator| initiator.child("iqn"));
        let initiator = initiator.map(InitiatorName::read).transpose()?;
        let source = RemoteSource::iscsi(name, hosts, initiator);
        Ok(Self::Iscsi { source: Box::new(source), auth: auth.map(Box::new) })
    }

    fn write(&self, out: &mut Writer) {
        out.element("source", |out| match self {
            Self::Host { adapter, bus, target, unit, .. } => {
                out.element("adapter", |out| out.attribute("name", adapter));
                out.element("address", |out| {
                    out.attribute("bus", bus);
                    out.attribute("target", target);
                    out.attribute("unit", unit);
                });
            }
            Self::Iscsi { source, auth } => {
                out.attribute_str("protocol", NetworkProtocol::Iscsi.as_str());
                if let Some(name) = &source.name {
                    out.attribute("name", name);
                }
                for host in &source.hosts {
                    Part::write(host, out, "host");
                }
                if let Some(auth) = auth {
                    Part::write(auth, out, "auth");
                }
                if let Some(initiator) = source.initiator.first() {
                    out.element("initiator", |out| Part::write(initiator, out, "iqn"));
                }
            }
        });
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Host { adapter, bus, target, unit, .. },
                Self::Host { adapter: adapter2, bus: bus2, target: target2, unit: unit2, .. },
            ) => (adapter, bus, target, unit) == (adapter2, bus2, target2, unit2),
            (Self::Iscsi { source, .. }, Self::Iscsi { source: source2, .. }) => {
                source.hosts == source2.hosts && source.name == source2.name
            }
            _ => false,
        }
    }
}

impl VhostScsi {
    fn read(element: Element<'_>, source: Element<'_>) -> Result<Self> {
        match source.attribute("protocol") {
            Some("vhost") => {}
            None => return Err(ConfError::missing_attribute("protocol", "source")),
            Some(other) => return Err(ConfError::invalid_attribute("protocol", "source", other, "")),
        }
        let Some(wwpn) = source.attribute("wwpn") else {
            return Err(ConfError::xml("missing vhost-scsi hostdev source wwpn"));
        };
        let digits = wwpn.strip_prefix("naa.").unwrap_or_default();
        if digits.len() != 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ConfError::xml("malformed 'wwpn' value"));
        }
        Ok(Self { model: element.value("model")?, wwpn: wwpn.into() })
    }
}

impl Mdev {
    fn read(element: Element<'_>, source: Element<'_>) -> Result<Self> {
        let model = element.required("model")?;
        let (display, ramfb) = (element.value("display")?, element.value("ramfb")?);
        let Some(address) = source.child("address") else {
            return Err(ConfError::unsupported("Missing <address> element"));
        };
        let Some(uuid) = address.attribute("uuid") else {
            return Err(ConfError::unsupported("Missing 'uuid' attribute for element <address>"));
        };
        let malformed = |_| ConfError::internal("Cannot parse uuid attribute of element <address>");
        Ok(Self { model, display, ramfb, uuid: uuid.parse().map_err(malformed)? })
    }
}

impl Hostdev {
    /// Whether it is plugged into the guest's PCI buses.
    pub fn is_on_pci(&self) -> bool {
        match &self.source {
            HostdevSource::Pci(_) | HostdevSource::VhostScsi(_) => true,
            HostdevSource::Mdev(mdev) => mdev.model == MdevModel::VfioPci,
            _ => false,
        }
    }
}
