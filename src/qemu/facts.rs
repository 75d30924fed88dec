//! What a definition's defaults need to know of QEMU.

use crate::conf::domain::defaults::{Age, Facts, Has};
use crate::conf::domain::{Domain, VirtType};
use crate::qemu::capabilities::{Accel, Cap, QemuCaps};

/// Which capability shows each device.
const SHOWN_BY: &[(Has, Cap)] = &[
    (Has::QEMU_XHCI, Cap::DeviceQemuXhci),
    (Has::NEC_XHCI, Cap::NecUsbXhci),
    (Has::ICH9_EHCI, Cap::Ich9UsbEhci1),
    (Has::PIIX3_UHCI, Cap::Piix3UsbUhci),
    (Has::RTL8139, Cap::DeviceRtl8139),
    (Has::E1000, Cap::DeviceE1000),
    (Has::VIRTIO_NET, Cap::DeviceVirtioNet),
    (Has::LSI, Cap::ScsiLsi),
    (Has::VIRTIO_SCSI, Cap::VirtioScsi),
    (Has::CIRRUS, Cap::DeviceCirrusVga),
    (Has::VGA, Cap::DeviceVga),
    (Has::I8042, Cap::DeviceI8042),
    (Has::PCIE_TO_PCI, Cap::DevicePciePciBridge),
    (Has::PCIE_ROOT_PORT, Cap::DevicePcieRootPort),
    (Has::CPU_MIGRATABLE, Cap::CpuMigratable),
    (Has::QXL, Cap::DeviceQxl),
    (Has::VMVGA, Cap::DeviceVmwareSvga),
    (Has::BOCHS, Cap::DeviceBochsDisplay),
    (Has::VIRTIO_GPU, Cap::DeviceVirtioGpu),
    (Has::RAMFB, Cap::DeviceRamfb),
    (Has::NBD_TLS_HOSTNAME, Cap::BlockdevNbdTlsHostname),
    (Has::RBD_ENCRYPTION, Cap::RbdEncryption),
    (Has::RBD_ENCRYPTION_LAYERING, Cap::RbdEncryptionLayering),
    (Has::RBD_ENCRYPTION_LUKS_ANY, Cap::RbdEncryptionLuksAny),
    (Has::VIRTIO_BLK_SCSI, Cap::VirtioBlkScsi),
    (Has::SDL, Cap::Sdl),
    (Has::VNC, Cap::Vnc),
    (Has::SPICE, Cap::Spice),
    (Has::EGL_HEADLESS, Cap::EglHeadless),
    (Has::DBUS_DISPLAY, Cap::DisplayDbus),
    (Has::MEMFD_HUGETLB, Cap::ObjectMemoryMemfdHugetlb),
    (Has::PC_DIMM, Cap::DevicePcDimm),
    (Has::NVDIMM, Cap::DeviceNvdimm),
    (Has::VIRTIO_PMEM, Cap::DeviceVirtioPmemPci),
    (Has::VIRTIO_MEM, Cap::DeviceVirtioMemPci),
    (Has::VIRTIO_MEM_SLOTS, Cap::DeviceVirtioMemPciDynamicMemslots),
    (Has::SGX_EPC, Cap::SgxEpc),
    (Has::USB_HOST_RESETS, Cap::UsbHostGuestsResetsAll),
    (Has::VHOST_SCSI, Cap::DeviceVhostScsi),
    (Has::IVSHMEM_PLAIN, Cap::DeviceIvshmemPlain),
    (Has::IVSHMEM_DOORBELL, Cap::DeviceIvshmemDoorbell),
    (Has::ACPI_ERST, Cap::DeviceAcpiErst),
    (Has::INTEL_IOMMU_EIM, Cap::IntelIommuEim),
    (Has::MACHINE_I8042, Cap::MachineI8042Opt),
];

/// The facts for a definition that runs on this binary.
pub fn facts<'a>(caps: &'a QemuCaps, domain: &Domain) -> Facts<'a> {
    let accel = if domain.virt_type == VirtType::Kvm { Accel::Kvm } else { Accel::Tcg };
    let machine = match domain.machine() {
        "" => caps.default_machine(accel),
        name => caps.machine(accel, name),
    };
    let known = machine;
    let machine = known.map(|machine| machine.name.as_str());
    let shown = SHOWN_BY.iter().filter(|(_, cap)| caps.supports(*cap));
    Facts {
        arch: caps.arch,
        emulator: caps.binary.to_str().unwrap_or_default(),
        machine,
        default_cpu: machine.and_then(|machine| caps.default_cpu(accel, machine)),
        has: shown.map(|(has, _)| *has).collect(),
        age: Age::New,
        firmwares: &[],
        nvram_dir: "/var/lib/libvirt/qemu/nvram",
        virt_type_works: matches!(domain.virt_type, VirtType::Kvm | VirtType::Qemu)
            && caps.accel(accel).is_some(),
        max_vcpus: known.map(|machine| machine.max_cpus),
        acpi: known.and_then(|machine| machine.acpi),
    }
}
