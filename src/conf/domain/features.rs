//! `<features>`: what the machine and the hypervisor offer the guest.

use super::memory::{Kib, PrettySize};
use crate::conf::xml::{Dec, Element, OnOff, Part, Writer, YesNo, xml, xml_enum};
use crate::conf::{ConfError, Result};

/// Everything libvirt knows in `<features>`; another name is refused.
const KNOWN: &[&str] = &[
    "acpi",
    "apic",
    "pae",
    "hap",
    "viridian",
    "privnet",
    "hyperv",
    "kvm",
    "pvspinlock",
    "capabilities",
    "pmu",
    "vmport",
    "gic",
    "smm",
    "ioapic",
    "hpt",
    "vmcoreinfo",
    "htm",
    "nested-hv",
    "msrs",
    "ccf-assist",
    "xen",
    "cfpc",
    "sbbc",
    "ibs",
    "tcg",
    "async-teardown",
    "ras",
    "ps2",
    "aia",
];

/// `<features>` with unknown names refused.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Features(pub FeatureList);

impl std::ops::Deref for Features {
    type Target = FeatureList;

    fn deref(&self) -> &FeatureList {
        &self.0
    }
}

impl std::ops::DerefMut for Features {
    fn deref_mut(&mut self) -> &mut FeatureList {
        &mut self.0
    }
}

impl Part for Features {
    fn read(element: Element<'_>) -> Result<Self> {
        refuse_unknown(element, KNOWN, "unexpected feature '", "'")?;
        FeatureList::read(element).map(Self)
    }

    fn write_children(&self, out: &mut Writer) {
        self.0.write_children(out);
    }
}

fn refuse_unknown(element: Element<'_>, known: &[&str], before: &str, after: &str) -> Result<()> {
    match element.children().find(|child| !known.contains(&child.name())) {
        Some(child) => Err(ConfError::unsupported(format!("{before}{}{after}", child.name()))),
        None => Ok(()),
    }
}

xml! {
    /// Features in the order they are printed.
    #[derive(Default)]
    pub struct FeatureList {
        flag acpi: bool = "acpi";
        child apic: Option<Apic> = "apic";
        flag pae: bool = "pae";
        child hap: Option<Toggle> = "hap";
        flag viridian: bool = "viridian";
        flag privnet: bool = "privnet";
        block hyperv: Option<Box<Hyperv>> = "hyperv";
        block kvm: Option<Box<KvmFeatures>> = "kvm";
        child pvspinlock: Option<Toggle> = "pvspinlock";
        child pmu: Option<Toggle> = "pmu";
        child vmport: Option<Toggle> = "vmport";
        child gic: Option<Gic> = "gic";
        child smm: Option<Smm> = "smm";
        child_attr ioapic: Option<IoapicDriver> = "ioapic" / "driver";
        group hpt: Hpt = "hpt";
        child vmcoreinfo: Option<Toggle> = "vmcoreinfo";
        child htm: Option<State> = "htm";
        child nested_hv: Option<State> = "nested-hv";
        child msrs: Option<Msrs> = "msrs";
        child ccf_assist: Option<State> = "ccf-assist";
        child_attr cfpc: Option<Mitigation> = "cfpc" / "value";
        child_attr sbbc: Option<Mitigation> = "sbbc" / "value";
        child_attr ibs: Option<Ibs> = "ibs" / "value";
        group tcg: Tcg = "tcg";
        child async_teardown: Option<AsyncTeardown> = "async-teardown";
        child ras: Option<State> = "ras";
        child ps2: Option<State> = "ps2";
        child_attr aia: Option<Aia> = "aia" / "value";
    }
}

xml! {
    /// On unless it says otherwise.
    #[derive(Copy, Eq)]
    pub struct Toggle {
        attr state: OnOff = "state", or OnOff::On;
    }
}

xml! {
    /// On or off, said expressly.
    #[derive(Copy, Eq)]
    pub struct State {
        attr state: OnOff = "state";
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct Apic {
        attr eoi: Option<OnOff> = "eoi";
    }
}

xml_enum! {
    pub enum GicVersion {
        Host = "host",
        V2 = "2",
        V3 = "3",
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct Gic {
        attr version: Option<GicVersion> = "version";
    }
}

/// System management mode, with the size of its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Smm {
    pub state: OnOff,
    pub tseg: Option<PrettySize>,
}

impl Default for Smm {
    fn default() -> Self {
        Self { state: OnOff::On, tseg: None }
    }
}

impl Part for Smm {
    fn read(element: Element<'_>) -> Result<Self> {
        let state = element.value("state")?.unwrap_or(OnOff::On);
        let tseg = element.child("tseg").filter(|_| state == OnOff::On);
        Ok(Self { state, tseg: tseg.map(|tseg| PrettySize::read_text(tseg, 1 << 20)).transpose()? })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("state", &self.state);
    }

    fn write_children(&self, out: &mut Writer) {
        if let Some((size, unit)) = self.tseg.map(PrettySize::parts) {
            out.element("tseg", |out| {
                out.attribute_str("unit", unit);
                out.body(&size);
            });
        }
    }
}

xml_enum! {
    pub enum IoapicDriver {
        Qemu = "qemu",
        Kvm = "kvm",
    }
}

xml_enum! {
    pub enum HptResizing {
        Enabled = "enabled",
        Disabled = "disabled",
        Required = "required",
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct Hpt {
        attr resizing: Option<HptResizing> = "resizing";
        child maxpagesize: Option<Kib> = "maxpagesize";
    }
}

xml_enum! {
    pub enum MsrsUnknown {
        Ignore = "ignore",
        Fault = "fault",
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Msrs {
        attr unknown: MsrsUnknown = "unknown";
    }
}

xml_enum! {
    pub enum Mitigation {
        Broken = "broken",
        Workaround = "workaround",
        Fixed = "fixed",
    }
}

xml_enum! {
    pub enum Ibs {
        Broken = "broken",
        Workaround = "workaround",
        FixedIbs = "fixed-ibs",
        FixedCcd = "fixed-ccd",
        FixedNa = "fixed-na",
    }
}

xml_enum! {
    pub enum Aia {
        None = "none",
        Aplic = "aplic",
        AplicImsic = "aplic-imsic",
    }
}

xml! {
    #[derive(Copy, Eq, Default)]
    pub struct Tcg {
        child tb_cache: Option<Kib> = "tb-cache";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct AsyncTeardown {
        attr enabled: YesNo = "enabled", or YesNo::Yes;
    }
}

xml_enum! {
    pub enum HypervMode {
        Custom = "custom",
        Passthrough = "passthrough",
    }
}

const HYPERV_KNOWN: &[&str] = &[
    "relaxed",
    "vapic",
    "spinlocks",
    "vpindex",
    "runtime",
    "synic",
    "stimer",
    "reset",
    "vendor_id",
    "frequencies",
    "reenlightenment",
    "tlbflush",
    "ipi",
    "evmcs",
    "avic",
    "emsr_bitmap",
    "xmm_input",
];

/// What makes Windows feel at home.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyperv {
    pub mode: HypervMode,
    pub list: HypervList,
}

impl Part for Hyperv {
    fn read(element: Element<'_>) -> Result<Self> {
        let mode = element.value("mode")?.unwrap_or(HypervMode::Custom);
        if mode == HypervMode::Passthrough {
            return Ok(Self { mode, list: HypervList::default() });
        }
        refuse_unknown(element, HYPERV_KNOWN, "unsupported HyperV Enlightenment feature: ", "")?;
        let list = HypervList::read(element)?;
        if let Some(spinlocks) = list.spinlocks
            && spinlocks.state == OnOff::On
            && spinlocks.retries.is_none_or(|retries| retries < 0xFFF)
        {
            let message = "HyperV spinlock retry count must be at least 4095";
            return Err(ConfError::xml(message));
        }
        Ok(Self { mode, list })
    }

    fn write_attributes(&self, out: &mut Writer) {
        out.attribute("mode", &self.mode);
    }

    fn write_children(&self, out: &mut Writer) {
        self.list.write_children(out);
    }
}

xml! {
    #[derive(Default)]
    pub struct HypervList {
        child relaxed: Option<State> = "relaxed";
        child vapic: Option<State> = "vapic";
        child spinlocks: Option<Spinlocks> = "spinlocks";
        child vpindex: Option<State> = "vpindex";
        child runtime: Option<State> = "runtime";
        child synic: Option<State> = "synic";
        child stimer: Option<Stimer> = "stimer";
        child reset: Option<State> = "reset";
        child vendor_id: Option<VendorId> = "vendor_id";
        child frequencies: Option<State> = "frequencies";
        child reenlightenment: Option<State> = "reenlightenment";
        child tlbflush: Option<Tlbflush> = "tlbflush";
        child ipi: Option<State> = "ipi";
        child evmcs: Option<State> = "evmcs";
        child avic: Option<State> = "avic";
        child emsr_bitmap: Option<State> = "emsr_bitmap";
        child xmm_input: Option<State> = "xmm_input";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Spinlocks {
        attr state: OnOff = "state";
        attr retries: Option<u32> = "retries";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Stimer {
        attr state: OnOff = "state";
        child direct: Option<State> = "direct";
    }
}

xml! {
    pub struct VendorId {
        attr state: OnOff = "state";
        attr value: Option<Box<str>> = "value";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct Tlbflush {
        attr state: OnOff = "state";
        child direct: Option<State> = "direct";
        child extended: Option<State> = "extended";
    }
}

const KVM_KNOWN: &[&str] = &["hidden", "hint-dedicated", "poll-control", "pv-ipi", "dirty-ring"];

/// `<kvm>` with unknown names refused.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct KvmFeatures(pub KvmList);

impl Part for KvmFeatures {
    fn read(element: Element<'_>) -> Result<Self> {
        refuse_unknown(element, KVM_KNOWN, "unsupported KVM feature: ", "")?;
        let list = KvmList::read(element)?;
        if let Some(DirtyRing { state: OnOff::On, size }) = list.dirty_ring {
            let Dec(size) = size.ok_or_else(|| ConfError::missing_attribute("size", "dirty-ring"))?;
            if !size.is_power_of_two() || !(1024..=65536).contains(&size) {
                return Err(ConfError::xml("dirty ring must be power of 2 and ranges [1024, 65536]"));
            }
        }
        Ok(Self(list))
    }

    fn write_children(&self, out: &mut Writer) {
        self.0.write_children(out);
    }
}

xml! {
    #[derive(Copy, Default)]
    pub struct KvmList {
        child hidden: Option<State> = "hidden";
        child hint_dedicated: Option<State> = "hint-dedicated";
        child poll_control: Option<State> = "poll-control";
        child pv_ipi: Option<State> = "pv-ipi";
        child dirty_ring: Option<DirtyRing> = "dirty-ring";
    }
}

xml! {
    #[derive(Copy, Eq)]
    pub struct DirtyRing {
        attr state: OnOff = "state";
        attr size: Option<Dec> = "size";
    }
}
