//! What a guest is plugged together from: one file per kind of device.
//!
//! # How to add a device
//!
//! 1. A file named after libvirt's element, with one `xml!` per element (its module documentation lists
//!    the kinds of fields) and `xml_enum!` for the words. `flat info: DeviceInfo;` as the last
//!    line brings alias, address, boot order and option ROM. [`rng`] is the model to follow.
//! 2. One line in [`Devices`], where libvirt prints it: the order of lines is the order of output.
//! 3. Where the device needs an address, an arm in `conf::domain::defaults`; where nonsense could reach
//!    QEMU, a check in `conf::domain::validate`.
//! 4. A definition that uses it in `tests/data/domain`, with upstream's answer beside it.
//!
//! What libvirt does not know is dropped when read; nobody needs to say so.

mod bandwidth;
mod chardev;
mod controller;
mod crypto;
mod disk;
mod filesystem;
mod graphics;
mod hostdev;
mod hub;
mod info;
mod input;
mod interface;
mod iommu;
mod iothread_mapping;
mod memballoon;
mod memory_device;
mod mirror;
mod network_storage;
mod panic;
mod plugged;
mod pstore;
mod raw;
mod redirection;
mod rng;
mod screens;
mod serial;
mod shmem;
mod smartcard;
mod sound;
mod storage;
#[cfg(test)]
mod tests;
mod tpm;
mod video;
mod vsock;
mod watchdog;

pub use bandwidth::{Bandwidth, Rate};
pub use chardev::{
    CharBackend, CharKind, CharLog, CharSource, FileSource, Reconnect, SocketPlace, SourceMode, TcpProtocol,
    TcpSource, UdpSource, UnixSource,
};
pub use controller::{
    Controller, ControllerDriver, ControllerKind, ControllerType, IdeModel, PciModel, PciModelName,
    PciOptions, PciTarget, ScsiModel, UsbModel, UsbOptions, VirtioModel, VirtioSerialOptions,
};
pub use crypto::{Crypto, CryptoBackend, CryptoModel, CryptoType};
pub use disk::{
    BlockIo, DetectZeroes, Discard, Disk, DiskBus, DiskCache, DiskDevice, DiskDriver, DiskIo, DiskModel,
    DiskTarget, ErrorPolicy, Geometry, GeometryTrans, IoTune, SnapshotLocation, ThrottleFilter,
    ThrottleFilters, Transient, Tray,
};
pub use filesystem::{
    AccessMode, CacheMode, FileMode, Filesystem, FilesystemBinary, FilesystemDriver, FilesystemDriverType,
    FilesystemIdmap, FilesystemIds, FilesystemLock, FilesystemModel, FilesystemSource, FilesystemType,
    Multidevs, SandboxMode, WritePolicy,
};
pub use graphics::{
    AuthConnected, DateTime, Graphics, GraphicsAuth, GraphicsKind, Listen, ListenKind, ListenPlace,
    SharePolicy, Vnc,
};
pub use hostdev::{
    GuestReset, Hostdev, HostdevDriver, HostdevDriverName, HostdevKind, HostdevSource, Mdev, MdevModel,
    PciHostdev, ScsiHostdev, ScsiPlace, Teaming, TeamingType, UsbHostdev, VhostScsi, VhostScsiModel,
};
pub use hub::{Hub, HubKind};
pub use info::{
    Address, Boot, CcidAddress, CcwAddress, DeviceInfo, DimmAddress, DriveAddress, HexLong, IsaAddress,
    PciAddress, Rom, SpaprVioAddress, UsbAddress, UsbPort, VirtioOptions, VirtioSerialAddress,
};
pub use input::{GrabToggle, Input, InputBus, InputGrab, InputKind, InputModel, InputSource};
pub use interface::{
    BackendKind, Coalesce, GuestOffloads, HostOffloads, Interface, InterfaceBackend, InterfaceKind,
    InterfaceModel, InterfaceSource, InterfaceTarget, InterfaceTune, IpAddress, LinkState, MacAddress,
    MacKind, ModelName, NetDriver, NetworkSource, SocketSource, TxMode, VhostUserMode, VhostUserNet,
    VirtioNetDriver,
};
pub use iommu::{Iommu, IommuDriver, IommuModel};
pub use iothread_mapping::{IoThreadMapping, MappedIoThread, MappedQueue};
pub use memballoon::{BalloonModel, MemBalloon};
pub use memory_device::{MemoryDevice, MemoryModel, MemorySourcePart, MemoryTarget};
pub use mirror::{Mirror, MirrorJob, MirrorState};
pub use network_storage::{
    AuthKind, Cookie, InitiatorName, NetworkProtocol, NfsIdentity, NvmeSource, ReconnectDelay, RemoteSource,
    Reservations, Slice, SshIdentity, StorageAuth, StorageHost, StorageTransport, VhostUserSource,
    VolumeMode, VolumeSource,
};
pub use panic::{Panic, PanicModel};
pub use plugged::{is_fixed_in_definitions, is_fixed_in_guests, refuse_plugging};
pub use pstore::{Pstore, PstoreBackend};
pub use raw::Raw;
pub use redirection::{FilterRule, RedirBus, RedirFilter, Redirdev, UsbVersion};
pub use rng::{RandomSource, Rng, RngBackend, RngModel, RngRate};
pub use screens::{
    Dbus, EglHeadless, Gl, ImageCompression, MouseMode, Sdl, Spice, SpiceChannel, SpiceChannelName,
    SpiceMode, SpiceOptions, StreamingMode, WanCompression,
};
pub use serial::{
    Channel, ChannelState, ChannelTarget, Console, ConsoleTarget, ConsoleType, Parallel, PortTarget, Serial,
    SerialModel, SerialTarget, SerialType,
};
pub use shmem::{Msi, Shmem, ShmemModel, ShmemRole, ShmemServer};
pub use smartcard::{Card, Certificates, Smartcard};
pub use sound::{
    Audio, AudioFormat, AudioKind, AudioSettings, AudioStream, Codec, CodecKind, Sound, SoundModel,
};
pub use storage::{
    Backing, CacheSize, Layer, LayerFormat, MetadataCache, Place, StartupPolicy, Storage, StorageFormat,
    StorageKind,
};
pub use tpm::{
    PcrBank, PcrBanks, RemoveDisabled, Tpm, TpmBackend, TpmEmulator, TpmExternal, TpmModel, TpmPassthrough,
    TpmProfile, TpmSocket, TpmSource, TpmSourceKind, TpmVersion,
};
pub use video::{Acceleration, Resolution, VgaConf, Video, VideoBackend, VideoDriver, VideoKind, VideoModel};
pub use vsock::{Cid, Vsock, VsockModel};
pub use watchdog::{Watchdog, WatchdogAction, WatchdogModel};

use super::xml::xml;

xml! {
    /// `<devices>`: every kind in the order libvirt prints them. Kinds held as [`Raw`] are kept in the
    /// definition; a guest that has one does not start.
    #[derive(Default)]
    pub struct Devices {
        text emulator: Option<Box<str>> = "emulator";
        child disks: Vec<Disk> = "disk";
        child controllers: Vec<Controller> = "controller";
        child leases: Vec<Raw> = "lease";
        child filesystems: Vec<Filesystem> = "filesystem";
        child interfaces: Vec<Interface> = "interface";
        child smartcards: Vec<Smartcard> = "smartcard";
        child serials: Vec<Serial> = "serial";
        child parallels: Vec<Parallel> = "parallel";
        child consoles: Vec<Console> = "console";
        child channels: Vec<Channel> = "channel";
        child inputs: Vec<Input> = "input";
        child tpms: Vec<Tpm> = "tpm";
        child graphics: Vec<Graphics> = "graphics";
        child sounds: Vec<Sound> = "sound";
        child audios: Vec<Audio> = "audio";
        child videos: Vec<Video> = "video";
        child hostdevs: Vec<Hostdev> = "hostdev";
        child redirdevs: Vec<Redirdev> = "redirdev";
        child redirfilters: Vec<RedirFilter> = "redirfilter";
        child hubs: Vec<Hub> = "hub";
        child watchdogs: Vec<Watchdog> = "watchdog";
        child memballoons: Vec<MemBalloon> = "memballoon";
        child rngs: Vec<Rng> = "rng";
        child nvrams: Vec<Raw> = "nvram";
        child panics: Vec<Panic> = "panic";
        child shmems: Vec<Shmem> = "shmem";
        child memories: Vec<MemoryDevice> = "memory";
        child cryptos: Vec<Crypto> = "crypto";
        child iommus: Vec<Iommu> = "iommu";
        child vsocks: Vec<Vsock> = "vsock";
        child pstores: Vec<Pstore> = "pstore";
    }
}

impl Devices {
    /// The kinds that the daemon cannot start, by element name.
    pub fn unsupported(&self) -> impl Iterator<Item = &'static str> {
        (!self.nvrams.is_empty()).then_some("nvram").into_iter()
    }
}
