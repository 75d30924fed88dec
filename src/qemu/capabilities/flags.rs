//! The capability flags of a QEMU binary, and what in its answers shows each.
//!
//! Names and order are libvirt's, because the status file of a running guest lists the flags it was
//! started with. A flag without evidence here is set by code in `probe`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What proves that a binary has a capability. One proof is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// An entry of `qom-list-types`.
    Type(&'static str),
    /// A path into the QMP schema, in the notation of [`super::schema`].
    Schema(&'static str),
    /// A device type's property.
    Property(&'static str, &'static str),
    /// A property of another object type.
    ObjectProperty(&'static str, &'static str),
    /// A machine type's property.
    MachineProperty(&'static str, &'static str),
    /// An option of the command line and, unless empty, its parameter.
    Option(&'static str, &'static str),
    /// An entry of `query-migrate-capabilities`.
    Migration(&'static str),
    /// An entry of `query-tpm-types`.
    TpmType(&'static str),
    /// An entry of `query-tpm-models`.
    TpmModel(&'static str),
}

use Evidence::{
    MachineProperty, Migration, ObjectProperty, Option as Opt, Property, Schema, TpmModel, TpmType, Type,
};

macro_rules! caps {
    ($($variant:ident $name:literal $(: $($evidence:expr),+)?;)*) => {
        /// One thing that a QEMU binary can or cannot do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Cap { $($variant),* }

        impl Cap {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in status files.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub(super) const fn evidence(self) -> &'static [Evidence] {
                match self { $(Self::$variant => &[$($($evidence),+)?]),* }
            }
        }
    };
}

caps! {
    Kvm "kvm";
    Sdl "sdl": Schema("query-display-options/ret-type/+sdl");
    Spice "spice": Opt("spice", "");
    HdaDuplex "hda-duplex": Type("hda-duplex");
    CcidEmulated "ccid-emulated": Type("ccid-card-emulated");
    CcidPassthru "ccid-passthru": Type("ccid-card-passthru");
    Piix3UsbUhci "piix3-usb-uhci": Type("piix3-usb-uhci");
    Piix4UsbUhci "piix4-usb-uhci": Type("piix4-usb-uhci");
    UsbEhci "usb-ehci": Type("usb-ehci");
    Ich9UsbEhci1 "ich9-usb-ehci1": Type("ich9-usb-ehci1");
    Vt82c686bUsbUhci "vt82c686b-usb-uhci": Type("vt82c686b-usb-uhci");
    PciOhci "pci-ohci": Type("pci-ohci");
    UsbRedir "usb-redir": Type("usb-redir");
    UsbHub "usb-hub": Type("usb-hub");
    Ich9Ahci "ich9-ahci": Type("ich9-ahci");
    VirtioBlkScsi "virtio-blk-pci.scsi":
        Property("virtio-blk-pci", "scsi"), Property("virtio-blk-ccw", "scsi");
    ScsiDiskChannel "scsi-disk.channel": Property("scsi-hd", "channel");
    ScsiBlock "scsi-block": Type("scsi-block");
    HdaMicro "hda-micro": Type("hda-micro");
    NecUsbXhci "nec-usb-xhci": Type("nec-usb-xhci");
    ScsiLsi "lsi": Type("lsi53c895a");
    VirtioScsi "virtio-scsi-pci":
        Type("virtio-scsi-pci"), Type("virtio-scsi-ccw"), Type("virtio-scsi-device");
    UsbRedirFilter "usb-redir.filter": Property("usb-redir", "filter");
    SeccompSandbox "seccomp-sandbox": Opt("sandbox", "");
    Vnc "vnc": Schema("query-vnc");
    DeviceQxl "qxl": Type("qxl");
    DeviceVga "VGA": Type("VGA");
    DeviceCirrusVga "cirrus-vga": Type("cirrus-vga");
    DeviceVmwareSvga "vmware-svga": Type("vmware-svga");
    DeviceSclpconsole "s390-sclp": Type("sclpconsole");
    DeviceUsbSerial "usb-serial": Type("usb-serial");
    DeviceVirtioRng "virtio-rng": Type("virtio-rng-pci"), Type("virtio-rng-ccw"), Type("virtio-rng-device");
    ObjectRngRandom "rng-random": Type("rng-random");
    ObjectRngEgd "rng-egd": Type("rng-egd");
    VirtioCcw "virtio-ccw": Type("virtio-blk-ccw");
    ScsiMegasas "megasas": Type("megasas");
    DeviceTpmPassthrough "tpm-passthrough": TpmType("passthrough");
    DeviceTpmTis "tpm-tis": TpmModel("tpm-tis");
    DeviceNvram "nvram": Type("spapr-nvram");
    DevicePciBridge "pci-bridge": Type("pci-bridge");
    DeviceVfioPci "vfio-pci": Type("vfio-pci");
    DeviceDmiToPciBridge "dmi-to-pci-bridge": Type("i82801b11-bridge");
    DeviceUsbStorage "usb-storage": Type("usb-storage");
    DeviceVirtioMmio "virtio-mmio": Type("virtio-mmio");
    DeviceIch9IntelHda "ich9-intel-hda": Type("ich9-intel-hda");
    KvmPitTickPolicy "kvm-pit-lost-tick-policy": Property("kvm-pit", "lost_tick_policy");
    DevicePanic "pvpanic": Type("pvpanic");
    DeviceUsbKbd "usb-kbd": Type("usb-kbd");
    ObjectUsbAudio "usb-audio": Type("usb-audio");
    RtcResetReinjection "rtc-reset-reinjection": Schema("rtc-reset-reinjection");
    MigrateRdma "migrate-rdma": Migration("rdma-pin-all");
    VgaVgamem "VGA.vgamem_mb": Property("VGA", "vgamem_mb");
    VmwareSvgaVgamem "vmware-svga.vgamem_mb": Property("vmware-svga", "vgamem_mb");
    QxlVgamem "qxl.vgamem_mb": Property("qxl", "vgamem_mb");
    DevicePcDimm "pc-dimm": Type("pc-dimm");
    MachineVmportOpt "machine-vmport-opt": Type("vmport");
    DevicePciSerial "pci-serial": Type("pci-serial");
    DeviceIoh3420 "ioh3420": Type("ioh3420");
    DeviceX3130Upstream "x3130-upstream": Type("x3130-upstream");
    DeviceXio3130Downstream "xio3130-downstream": Type("xio3130-downstream");
    DeviceRtl8139 "rtl8139": Type("rtl8139");
    DeviceE1000 "e1000": Type("e1000");
    DeviceVirtioNet "virtio-net": Type("virtio-net-pci"), Type("virtio-net-ccw"), Type("virtio-net-device");
    DeviceVirtioGpu "virtio-gpu": Type("virtio-gpu-pci"), Type("virtio-gpu-device");
    VirtioGpuVirgl "virtio-gpu.virgl":
        Property("virtio-gpu-pci", "virgl"), Property("virtio-gpu-device", "virgl"),
        Property("virtio-gpu-ccw", "virgl");
    VirtioKeyboard "virtio-keyboard": Type("virtio-keyboard-device"), Type("virtio-keyboard-pci");
    VirtioMouse "virtio-mouse": Type("virtio-mouse-device"), Type("virtio-mouse-pci");
    VirtioTablet "virtio-tablet": Type("virtio-tablet-device"), Type("virtio-tablet-pci");
    VirtioInputHost "virtio-input-host": Type("virtio-input-host-device"), Type("virtio-input-host-pci");
    VirtioBalloonAutodeflate "virtio-balloon-pci.deflate-on-oom":
        Property("virtio-balloon-pci", "deflate-on-oom"), Property("virtio-balloon-ccw", "deflate-on-oom"),
        Property("virtio-balloon-device", "deflate-on-oom");
    ScsiMptsas1068 "mptsas1068": Type("mptsas1068");
    SpiceGl "spice-gl": Opt("spice", "gl");
    QxlVram64 "qxl.vram64_size_mb": Property("qxl", "vram64_size_mb");
    DevicePxb "pxb": Type("pxb");
    DevicePxbPcie "pxb-pcie": Type("pxb-pcie");
    DeviceIntelIommu "intel-iommu": Type("intel-iommu");
    DeviceVirtioVga "virtio-vga": Type("virtio-vga");
    DeviceIvshmemPlain "ivshmem-plain": Type("ivshmem-plain");
    DeviceIvshmemDoorbell "ivshmem-doorbell": Type("ivshmem-doorbell");
    DeviceVhostScsi "vhost-scsi": Type("vhost-scsi");
    QueryCpuModelExpansion "query-cpu-model-expansion": Schema("query-cpu-model-expansion");
    SpiceRendernode "spice-rendernode": Opt("spice", "rendernode");
    DeviceNvdimm "nvdimm": Type("nvdimm");
    DevicePcieRootPort "pcie-root-port": Type("pcie-root-port");
    QueryCpuDefinitions "query-cpu-definitions": Schema("query-cpu-definitions");
    DeviceQemuXhci "qemu-xhci": Type("qemu-xhci");
    IntelIommuIntremap "intel-iommu.intremap": Property("intel-iommu", "intremap");
    IntelIommuCachingMode "intel-iommu.caching-mode": Property("intel-iommu", "caching-mode");
    IntelIommuEim "intel-iommu.eim": Property("intel-iommu", "eim");
    IntelIommuDeviceIotlb "intel-iommu.device-iotlb": Property("intel-iommu", "device-iotlb");
    DeviceSpaprPciHostBridge "spapr-pci-host-bridge": Type("spapr-pci-host-bridge");
    SpaprPciHostBridgeNumaNode "spapr-pci-host-bridge.numa_node":
        Property("spapr-pci-host-bridge", "numa_node");
    ChardevReconnect "chardev-reconnect": Schema("chardev-add/arg-type/backend/+socket/data/reconnect");
    DeviceVmcoreinfo "vmcoreinfo": Type("vmcoreinfo");
    DeviceSpaprVty "spapr-vty": Type("spapr-vty");
    DeviceSclplmconsole "sclplmconsole": Type("sclplmconsole");
    DeviceIsaSerial "isa-serial": Type("isa-serial");
    DevicePl011 "pl011": Type("pl011");
    DeviceVirtioGpuCcw "virtio-gpu-ccw": Type("virtio-gpu-ccw");
    DeviceVirtioKeyboardCcw "virtio-keyboard-ccw": Type("virtio-keyboard-ccw");
    DeviceVirtioMouseCcw "virtio-mouse-ccw": Type("virtio-mouse-ccw");
    DeviceVirtioTabletCcw "virtio-tablet-ccw": Type("virtio-tablet-ccw");
    DevicePciePciBridge "pcie-pci-bridge": Type("pcie-pci-bridge");
    NbdTls "nbd-tls": Schema("nbd-server-start/arg-type/tls-creds");
    DeviceTpmCrb "tpm-crb": TpmModel("tpm-crb");
    PrManagerHelper "pr-manager-helper": Type("pr-manager-helper");
    DeviceVfioCcw "vfio-ccw": Type("vfio-ccw");
    ScreendumpDevice "screendump_device": Schema("screendump/arg-type/device");
    HdaOutput "hda-output": Type("hda-output");
    DeviceVmgenid "vmgenid": Type("vmgenid");
    DeviceVhostVsock "vhost-vsock": Type("vhost-vsock-device");
    DeviceTpmEmulator "tpm-emulator": TpmType("emulator");
    DeviceMch "mch": Type("mch");
    MchExtendedTsegMbytes "mch.extended-tseg-mbytes": Property("mch", "extended-tseg-mbytes");
    SevGuest "sev-guest": Type("sev-guest");
    EglHeadless "egl-headless": Schema("query-display-options/ret-type/+egl-headless");
    DeviceVfioAp "vfio-ap": Type("vfio-ap");
    DeviceZpci "zpci": Type("zpci");
    ObjectMemoryMemfd "memory-backend-memfd": Type("memory-backend-memfd");
    ObjectMemoryMemfdHugetlb "memory-backend-memfd.hugetlb":
        ObjectProperty("memory-backend-memfd", "hugetlb");
    EglHeadlessRendernode "egl-headless.rendernode":
        Schema("query-display-options/ret-type/+egl-headless/rendernode");
    ObjectMemoryFilePmem "memory-backend-file.pmem": ObjectProperty("memory-backend-file", "pmem");
    DeviceNvdimmUnarmed "nvdimm.unarmed": Property("nvdimm", "unarmed");
    VirtioPciTransitional "virtio-pci-non-transitional":
        Type("virtio-blk-pci-transitional"), Type("virtio-blk-pci-non-transitional"),
        Type("virtio-net-pci-transitional"), Type("virtio-net-pci-non-transitional"),
        Type("vhost-scsi-pci-transitional"), Type("vhost-scsi-pci-non-transitional"),
        Type("virtio-rng-pci-transitional"), Type("virtio-rng-pci-non-transitional"),
        Type("virtio-9p-pci-transitional"), Type("virtio-9p-pci-non-transitional"),
        Type("virtio-balloon-pci-transitional"), Type("virtio-balloon-pci-non-transitional"),
        Type("vhost-vsock-pci-transitional"), Type("vhost-vsock-pci-non-transitional"),
        Type("virtio-scsi-pci-transitional"), Type("virtio-scsi-pci-non-transitional"),
        Type("virtio-serial-pci-transitional"), Type("virtio-serial-pci-non-transitional");
    MachineVirtIommu "machine.virt.iommu": MachineProperty("virt", "iommu");
    X86MaxCpu "x86-max-cpu": Type("max-x86_64-cpu");
    CpuUnavailableFeatures "cpu-unavailable-features":
        ObjectProperty("max-x86_64-cpu", "unavailable-features"),
        ObjectProperty("max-arm-cpu", "unavailable-features");
    CanonicalCpuFeatures "canonical-cpu-features";
    DeviceBochsDisplay "bochs-display": Type("bochs-display");
    MigrationFileDropCache "migration-file-drop-cache": Schema("blockdev-add/arg-type/+file/drop-cache");
    DbusVmstate "dbus-vmstate": Type("dbus-vmstate");
    DeviceVhostUserGpu "vhost-user-gpu": Type("vhost-user-gpu");
    DeviceVhostUserVga "vhost-user-vga": Type("vhost-user-vga");
    QueryCpuModelBaseline "query-cpu-model-baseline": Schema("query-cpu-model-baseline");
    QueryCpuModelComparison "query-cpu-model-comparison": Schema("query-cpu-model-comparison");
    DeviceRamfb "ramfb": Type("ramfb");
    ArmMaxCpu "arm-max-cpu": Type("max-arm-cpu");
    DriveNvme "drive-nvme": Schema("blockdev-add/arg-type/+nvme");
    SmpDies "smp-dies": Schema("query-hotpluggable-cpus/ret-type/props/die-id");
    DeviceI8042 "i8042": Type("i8042");
    ObjectRngBuiltin "rng-builtin": Type("rng-builtin");
    DeviceTpmSpapr "tpm-spapr": Type("tpm-spapr"), TpmModel("tpm-spapr");
    CpuKvmNoAdjvtime "cpu.kvm-no-adjvtime":
        ObjectProperty("max-x86_64-cpu", "kvm-no-adjvtime"), ObjectProperty("max-arm-cpu", "kvm-no-adjvtime");
    DeviceVhostUserFs "vhost-user-fs": Type("vhost-user-fs-device");
    FsdevMultidevs "fsdev.multidevs": Opt("fsdev", "multidevs");
    PcieRootPortHotplug "pcie-root-port.hotplug": Property("pcie-root-port", "hotplug");
    AioIoUring "aio.io_uring": Schema("blockdev-add/arg-type/+file/aio/^io_uring");
    Tcg "tcg": Type("tcg-accel");
    VirtioBlkScsiDefaultDisabled "virtio-blk-pci.scsi.default.disabled";
    ScsiPvscsi "pvscsi": Type("pvscsi");
    CpuMigratable "cpu.migratable":
        ObjectProperty("max-x86_64-cpu", "migratable"), ObjectProperty("max-arm-cpu", "migratable");
    IntelIommuAwBits "intel-iommu.aw-bits": Property("intel-iommu", "aw-bits");
    DeviceSpaprTpmProxy "spapr-tpm-proxy": Type("spapr-tpm-proxy");
    NumaHmat "numa.hmat": Schema("set-numa-node/arg-type/+hmat-lb");
    UsbHostHostdevice "usb-host.hostdevice": Property("usb-host", "hostdevice");
    VirtioBalloonFreePageReporting "virtio-balloon.free-page-reporting":
        Property("virtio-balloon-pci", "free-page-reporting"),
        Property("virtio-balloon-ccw", "free-page-reporting"),
        Property("virtio-balloon-device", "free-page-reporting");
    NetdevVhostVdpa "netdev.vhost-vdpa": Schema("netdev_add/arg-type/+vhost-vdpa");
    ScsiNcr53c90 "ncr53c90";
    ScsiDc390 "dc390": Type("dc390");
    ScsiAm53c974 "am53c974": Type("am53c974");
    DeviceVirtioPmemPci "virtio-pmem-pci": Type("virtio-pmem-pci");
    VhostUserFsBootindex "vhost-user-fs.bootindex": Property("vhost-user-fs-device", "bootindex");
    DeviceVhostUserBlk "vhost-user-blk": Type("vhost-user-blk");
    CpuMax "cpu-max";
    XUseCanonicalPathForRamblockId "memory-backend-file.x-use-canonical-path-for-ramblock-id":
        ObjectProperty("memory-backend-file", "x-use-canonical-path-for-ramblock-id");
    VncPowerControl "vnc-power-control": Opt("vnc", "power-control");
    RotationRate "rotation-rate": Property("scsi-hd", "rotation_rate");
    AcpiIndex "acpi-index":
        Property("virtio-blk-pci", "acpi-index"), Property("virtio-net-pci", "acpi-index"),
        Property("virtio-scsi-pci", "acpi-index"), Property("virtio-blk-ccw", "acpi-index"),
        Property("virtio-net-ccw", "acpi-index"), Property("virtio-scsi-ccw", "acpi-index"),
        Property("virtio-gpu-pci", "acpi-index"), Property("virtio-gpu-device", "acpi-index"),
        Property("virtio-balloon-pci", "acpi-index"), Property("virtio-balloon-ccw", "acpi-index"),
        Property("virtio-balloon-device", "acpi-index"), Property("virtio-gpu-ccw", "acpi-index");
    InputLinux "input-linux": Type("input-linux");
    VirtioGpuGlPci "virtio-gpu-gl-pci": Type("virtio-gpu-gl-pci");
    VirtioVgaGl "virtio-vga-gl": Type("virtio-vga-gl");
    MachineConfidentalGuestSupport "confidential-guest-support":
        MachineProperty("none", "confidential-guest-support");
    S390PvGuest "s390-pv-guest": Type("s390-pv-guest");
    SetAction "set-action": Schema("set-action");
    VirtioBlkQueueSize "virtio-blk.queue-size":
        Property("virtio-blk-pci", "queue-size"), Property("virtio-blk-ccw", "queue-size");
    DeviceVirtioMemPci "virtio-mem-pci": Type("virtio-mem-pci");
    MemoryBackendReserve "memory-backend-file.reserve": ObjectProperty("memory-backend-file", "reserve");
    Piix4AcpiRootPciHotplug "piix4.acpi-root-pci-hotplug": Property("PIIX4_PM", "acpi-root-pci-hotplug");
    NetdevJson "netdev.json": Schema("netdev_add/arg-type/type/^dgram");
    ChardevJson "chardev.json";
    QueryDirtyRate "query-dirty-rate": Schema("query-dirty-rate");
    RbdEncryption "rbd-encryption": Schema("blockdev-add/arg-type/+rbd/encrypt");
    SevGuestKernelHashes "sev-guest-kernel-hashes": Schema("object-add/arg-type/+sev-guest/kernel-hashes");
    SevInjectLaunchSecret "sev-inject-launch-secret": Schema("sev-inject-launch-secret");
    DeviceJson "device.json+hotplug": Schema("device_add/$json-cli-hotplug");
    Hvf "hvf";
    DeviceVirtioMemPciPrealloc "virtio-mem-pci.prealloc": Property("virtio-mem-pci", "prealloc");
    CalcDirtyRate "calc-dirty-rate": Schema("calc-dirty-rate");
    DirtyrateMode "dirtyrate-param.mode": Schema("calc-dirty-rate/arg-type/mode");
    BlockdevNbdTlsHostname "blockdev.nbd.tls-hostname": Schema("blockdev-add/arg-type/+nbd/tls-hostname");
    MemoryBackendPreallocThreads "memory-backend-file.prealloc-threads":
        ObjectProperty("memory-backend-file", "prealloc-threads");
    DeviceVirtioIommuPci "virtio-iommu-pci": Type("virtio-iommu-pci");
    VirtioIommuBootBypass "virtio-iommu.boot-bypass": Property("virtio-iommu-pci", "boot-bypass");
    VirtioNetRss "virtio-net.rss": Property("virtio-net-pci", "rss"), Property("virtio-net-ccw", "rss");
    ChardevQemuVdagent "chardev.qemu-vdagent": Schema("chardev-add/arg-type/backend/+qemu-vdagent");
    DisplayDbus "display-dbus": Schema("query-display-options/ret-type/+dbus");
    IothreadThreadPoolMax "iothread.thread-pool-max": Schema("object-add/arg-type/+iothread/thread-pool-max");
    UsbHostGuestsResetsAll "usb-host.guest-resets-all": Property("usb-host", "guest-resets-all");
    MigrationBlockedReasons "migration.blocked-reasons": Schema("query-migrate/ret-type/blocked-reasons");
    QueryStats "query-stats": Schema("query-stats");
    QueryStatsSchemas "query-stats-schemas": Schema("query-stats-schemas");
    SgxEpc "sgx-epc": Type("sgx-epc");
    ThreadContext "thread-context": Type("thread-context");
    ScreenshotFormatPng "screenshot-format-png": Schema("screendump/arg-type/format/^png");
    MachineHpet "machine-hpet": Opt("machine", "hpet");
    NetdevStream "netdev.stream": Schema("netdev_add/arg-type/+stream");
    DeviceVirtioCrypto "virtio-crypto": Type("virtio-crypto-pci"), Type("virtio-crypto-device");
    ObjectCryptoLkcf "cryptodev-backend-lkcf": Type("cryptodev-backend-lkcf");
    DevicePanicPci "pvpanic-pci": Type("pvpanic-pci");
    NetdevStreamReconnect "netdev.stream.reconnect": Schema("netdev_add/arg-type/+stream/reconnect");
    VirtioGpuBlob "virtio-gpu.blob":
        Property("virtio-gpu-pci", "blob"), Property("virtio-gpu-device", "blob"),
        Property("virtio-gpu-ccw", "blob");
    RbdEncryptionLayering "rbd-encryption-layering": Schema("blockdev-add/arg-type/+rbd/encrypt/parent");
    RbdEncryptionLuksAny "rbd-encryption-luks-any":
        Schema("blockdev-add/arg-type/+rbd/encrypt/format/^luks-any");
    Qcow2DiscardNoUnref "qcow2-discard-no-unref": Schema("blockdev-add/arg-type/+qcow2/discard-no-unref");
    RunWithAsyncTeardown "run-with.async-teardown": Opt("run-with", "async-teardown");
    DeviceVirtioBlkVhostVdpa "virtio-blk-vhost-vdpa":
        Schema("blockdev-add/arg-type/+virtio-blk-vhost-vdpa/$fdset");
    VirtioBlkIothreadMapping "virtio-blk.iothread-mapping":
        Property("virtio-blk-pci", "iothread-vq-mapping"), Property("virtio-blk-ccw", "iothread-vq-mapping");
    SmpClusters "smp-clusters": Schema("query-hotpluggable-cpus/ret-type/props/cluster-id");
    DeviceVirtioMemPciDynamicMemslots "virtio-mem-pci.dynamic-memslots":
        Property("virtio-mem-pci", "dynamic-memslots");
    BlockjobBackingMaskProtocol "blockjob.backing-mask-protocol";
    DisplayReload "display-reload": Schema("display-reload");
    DeviceUsbMtp "usb-mtp": Type("usb-mtp");
    MachineVirtRas "machine.virt.ras": MachineProperty("virt", "ras");
    DeviceVirtioSound "virtio-sound": Type("virtio-sound-pci"), Type("virtio-sound-device");
    SevSnpGuest "sev-snp-guest": Type("sev-snp-guest");
    NetdevUser "netdev.user": Schema("netdev_add/arg-type/+user");
    DeviceAcpiErst "acpi-erst": Type("acpi-erst");
    IntelIommuDmaTranslation "intel-iommu.dma-translation": Property("intel-iommu", "dma-translation");
    MachineI8042Opt "machine-i8042-opt": MachineProperty("generic-pc", "i8042");
    ChardevReconnectMiliseconds "chardev-reconnect-miliseconds":
        Schema("chardev-add/arg-type/backend/+socket/data/reconnect-ms");
    VirtioCcwDeviceLoadparm "virtio-ccw.loadparm": Property("virtio-blk-ccw", "loadparm");
    NetdevStreamReconnectMiliseconds "netdev-stream-reconnect-miliseconds":
        Schema("netdev_add/arg-type/+stream/reconnect-ms");
    QueryCpuModelExpansionDeprecatedProps "query-cpu-model-expansion.deprecated-props":
        Schema("query-cpu-model-expansion/ret-type/deprecated-props");
    MigrateIncomingExitOnError "migrate-incoming.exit-on-error":
        Schema("migrate-incoming/arg-type/exit-on-error");
    MachineVirtAia "machine.virt.aia": MachineProperty("virt", "aia");
    DeviceVirtioMemCcw "virtio-mem-ccw": Type("virtio-mem-ccw");
    BlockdevSetActive "blockdev-set-active": Schema("blockdev-set-active");
    MachineShim "shim": MachineProperty("none", "shim");
    VirtioScsiIothreadMapping "virtio-scsi.iothread-mapping":
        Property("virtio-scsi-pci", "iothread-vq-mapping"),
        Property("virtio-scsi-ccw", "iothread-vq-mapping");
}

const WORDS: usize = Cap::ALL.len().div_ceil(64);

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<&'static str>")]
pub struct CapSet([u64; WORDS]);

impl CapSet {
    pub fn contains(&self, cap: Cap) -> bool {
        let bit = cap as usize;
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    pub fn insert(&mut self, cap: Cap) {
        let bit = cap as usize;
        if let Some(word) = self.0.get_mut(bit / 64) {
            *word |= 1 << (bit % 64);
        }
    }

    pub fn remove(&mut self, cap: Cap) {
        let bit = cap as usize;
        if let Some(word) = self.0.get_mut(bit / 64) {
            *word &= !(1 << (bit % 64));
        }
    }

    /// In libvirt's order, as a status file lists them.
    pub fn iter(&self) -> impl Iterator<Item = Cap> + '_ {
        Cap::ALL.iter().copied().filter(|cap| self.contains(*cap))
    }

    /// The set that a list of names describes; names of a newer or older libvirt are passed over.
    pub fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        names
            .into_iter()
            .filter_map(|name| Cap::ALL.iter().copied().find(|cap| cap.as_str() == name))
            .collect()
    }
}

impl FromIterator<Cap> for CapSet {
    fn from_iter<I: IntoIterator<Item = Cap>>(caps: I) -> Self {
        let mut set = Self::default();
        caps.into_iter().for_each(|cap| set.insert(cap));
        set
    }
}

impl From<Vec<String>> for CapSet {
    fn from(names: Vec<String>) -> Self {
        Self::from_names(names.iter().map(String::as_str))
    }
}

impl From<CapSet> for Vec<&'static str> {
    fn from(set: CapSet) -> Self {
        set.iter().map(Cap::as_str).collect()
    }
}

impl fmt::Debug for CapSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Cap::as_str)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_keeps_what_was_put_in_and_lists_it_in_order() {
        let set = CapSet::from_names(["netdev.json", "kvm", "no-such-flag"]);
        assert!(set.contains(Cap::Kvm) && set.contains(Cap::NetdevJson) && !set.contains(Cap::Tcg));
        assert_eq!(set.iter().map(Cap::as_str).collect::<Vec<_>>(), ["kvm", "netdev.json"]);
        let last = *Cap::ALL.last().unwrap();
        assert!([last].into_iter().collect::<CapSet>().contains(last));
    }
}
